"""Benchmarks in a small form: they call the stages' own code, which changes."""

from benchmarks import closed_form, network, published


def test_the_default_network_trains_and_samples(tmp_path):
    steps = network.tasks(tmp_path)
    assert {name: step() for name, step in steps.items()} == {"train": 32, "sample_network": 100, "sample_kernel": 100}


def test_closed_forms_are_compared_over_a_whole_run(monkeypatch, capsys):
    monkeypatch.setattr(closed_form, "SAMPLES", 30)
    monkeypatch.setattr(closed_form, "LEVELS", 20)
    ratios, missing = closed_form.run(closed_form.fields(60, 8), 4, False)
    assert set(ratios) == {"cdist", "float64 blocks"}
    assert all(ratio > 0 for ratio in ratios.values())
    assert missing is None
    said = capsys.readouterr().out.splitlines()
    assert [line.count("differs by") for line in said[:-1]] == [2] * 5
    assert "20 evaluations" in said[-1]


def test_the_published_network_is_the_presets():
    assert (published.network().channels, published.network(channels=4).channels) == (128, 4)
    assert (published.SHAPE, published.NOISE.sigma_max) == ((3, 32, 32), 50.0)
    assert published.optimization(batch=8).ema == 0.9999
