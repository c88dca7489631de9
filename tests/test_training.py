"""Training: resuming is exact, learning reaches the closed form, a diverged loss stops, epochs cover every image."""

import signal

import pytest
import torch
from scipy.stats import chisquare

from stages.diffusion.checkpoint import load_tensors
from stages.diffusion.losses import denoising_target
from stages.diffusion.network import NCSNpp
from stages.diffusion.noise import uniform
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams
from stages.diffusion.training import (
    DivergedError,
    EpochOrder,
    Trainer,
    TrainingSet,
    learning_rate,
    stratified,
)

NETWORK = NetworkParams(
    channels=8,
    multipliers=[1, 2],
    blocks=1,
    attention=[],
    patch=1,
    dropout=0.1,
    embedding="positional",
    fir=False,
    progressive_input=False,
    amplitude="raw",
)
LEVELS = NoiseParams(sigma_min=0.01, sigma_max=5)
OPTIMIZATION = OptimizationParams(
    steps=12,
    batch=8,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    warmup=2,
    decay="cosine",
    clip=1.0,
    ema=0.9,
    levels=100,
    flip=True,
    precision="float32",
    compile=False,
    seed=1,
    checkpoint_every=4,
    log_every=3,
    max_seconds=None,
)


def images(count=10):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trainer(scratch, key="run", **changes):
    params = OPTIMIZATION.model_copy(update=changes)
    return Trainer(
        params,
        LEVELS,
        lambda: NCSNpp(NETWORK, 1, 8, True, 0.01, 5.0),
        TrainingSet(images(), None),
        denoising_target,
        True,
        scratch,
        key,
    )


def weights(run):
    return {name: tensor.clone() for name, tensor in run.state.average.state_dict().items()}


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_ends_with_identical_weights_and_curve(tmp_path, precision):
    """Interrupted between checkpoints, with dropout and flips: bit-identical to the undisturbed run."""
    whole = trainer(tmp_path / "a", precision=precision)
    curve = list(whole.run())
    broken = trainer(tmp_path / "b", precision=precision)
    for progress in broken.run():
        if progress.step == 9:  # after the checkpoint of step 8
            break
    resumed = trainer(tmp_path / "b", precision=precision)
    assert resumed.resume() == 8
    rest = list(resumed.run())
    assert_identical(weights(whole), weights(resumed))
    assert rest[-1] == curve[-1]


def test_sigterm_saves_a_checkpoint_at_once_and_the_rest_is_identical(tmp_path):
    whole = trainer(tmp_path / "a")
    list(whole.run())
    broken = trainer(tmp_path / "b")
    with pytest.raises(SystemExit) as stopped:
        for progress in broken.run():
            if progress.step == 6:
                signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    resumed = trainer(tmp_path / "b")
    assert resumed.resume() == 6
    list(resumed.run())
    assert_identical(weights(whole), weights(resumed))


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    first = trainer(tmp_path, key="first")
    list(first.run())
    assert trainer(tmp_path, key="second").resume() == 0
    assert trainer(tmp_path, key="first").resume() == 12


def test_training_lowers_the_loss(tmp_path):
    """Half a unit per pixel is what F = 0 gives; ten images can be learned far below that where noise is strong."""
    run = trainer(tmp_path, steps=120, batch=16, log_every=20, learning_rate=5e-3, checkpoint_every=1000, flip=False)
    curve = list(run.run())
    assert curve[-1].loss < 0.6 * 0.5
    assert curve[-1].high < 0.15 * 0.5
    assert curve[-1].loss < curve[0].loss


def test_a_loss_that_is_not_finite_stops_with_step_and_sigma_and_saves_nothing(tmp_path):
    run = trainer(tmp_path)
    target = run.target

    def broken(x0, sigma, z, neighbors):
        wanted = target(x0, sigma, z, neighbors)
        return wanted * float("nan") if run.state.step == 2 else wanted

    run.target = broken
    with pytest.raises(DivergedError, match=r"nan at step 2, sigma [0-9.]+.*learning_rate"):
        list(run.run())
    assert not run.path.exists()


def test_time_limit_ends_with_a_usable_model(tmp_path):
    run = trainer(tmp_path, max_seconds=1e-6)
    list(run.run())
    assert run.state.step == 1


@pytest.mark.parametrize(("count", "batch"), [(10, 8), (5, 8), (3, 10), (10, 5)])
def test_every_epoch_shows_every_image_once(count, batch):
    order = EpochOrder(count, batch, seed=3)
    rows = torch.cat([order.rows(step) for step in range(30)])[: 30 * batch // count * count].reshape(-1, count)
    assert (rows.sort(1).values == torch.arange(count)).all()
    assert not torch.equal(rows[0], rows[1]) or count < 4
    fresh = EpochOrder(count, batch, seed=3)
    assert torch.equal(fresh.rows(17), order.rows(17))


def test_levels_are_uniform_over_batches_and_spread_within_one():
    draws = torch.stack([stratified(uniform(0, torch.arange(8) + 8 * n, 0, 1)[:, 0], 100) for n in range(4000)])
    assert (draws * 8 // 100 == torch.arange(8)).all(0).sum() >= 4  # strata of 12.5 levels share their border levels
    assert chisquare(torch.bincount(draws.flatten(), minlength=100).numpy()).pvalue > 1e-3
    assert int(stratified(torch.tensor([0.0, 1 - 2**-33], dtype=torch.float64), 100)[1]) == 99


def test_learning_rate_warms_up_and_decays():
    params = OPTIMIZATION.model_copy(update={"steps": 100, "warmup": 10, "learning_rate": 1.0})
    assert learning_rate(params, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(params, 50) == pytest.approx(0.5)
    assert learning_rate(params, 99) < 1e-3
    assert learning_rate(params.model_copy(update={"decay": "constant"}), 99) == 1.0


def test_damaged_checkpoint_is_named(tmp_path):
    run = trainer(tmp_path)
    list(run.run())
    run.path.write_bytes(run.path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        load_tensors(run.path)
