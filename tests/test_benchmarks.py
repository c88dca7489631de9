"""Benchmarks in a small form: they call the stages' own code, which changes."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """(name of a script) -> its module."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])

    def load(name):
        description = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(description)
        description.loader.exec_module(module)
        return module

    return load


def test_the_default_network_trains_and_samples(benchmark, tmp_path):
    steps = benchmark("network").tasks(tmp_path)
    assert {name: step() for name, step in steps.items()} == {"train": 32, "sample_network": 100, "sample_kernel": 100}


def test_closed_forms_are_compared_over_a_whole_run(benchmark, monkeypatch, capsys):
    module = benchmark("closed_form")
    monkeypatch.setattr(module, "SAMPLES", 30)
    monkeypatch.setattr(module, "LEVELS", 20)
    ratios, missing = module.run(module.fields(60, 8), 4, False)
    assert set(ratios) == {"cdist", "float64 blocks"}
    assert all(ratio > 0 for ratio in ratios.values())
    assert missing is None
    said = capsys.readouterr().out.splitlines()
    assert [line.count("differs by") for line in said[:-1]] == [2] * 5
    assert "20 evaluations" in said[-1]
