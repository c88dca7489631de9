"""Training: it is METHODS §4, learning reaches the closed form, a diverged loss stops, epochs cover every image."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from small_training import LEVELS, NETWORK, OPTIMIZATION, assert_identical, images, trainer, weights

from stages.diffusion.distributed import World
from stages.diffusion.loss_curve import DivergedError
from stages.diffusion.network import NCSNpp
from stages.diffusion.noise import generator_seed, normal, uniform
from stages.diffusion.targets import denoising_target, temperature_target
from stages.diffusion.temperature import temperature_rule
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import add_gradient, learning_rate, start_training, stratified, train_steps
from stages.diffusion.training_set import EpochOrder, TrainingSet, open_training_set


def test_training_lowers_the_loss(tmp_path):
    """Half a unit per pixel is what F = 0 gives; ten images can be learned far below that where noise is strong."""
    run = trainer(tmp_path, steps=120, batch=16, log_every=20, learning_rate=5e-3, checkpoint_every=1000, flip=False)
    curve = list(run.run())
    assert curve[-1].loss < 0.6 * 0.5
    assert curve[-1].high < 0.15 * 0.5
    assert curve[-1].loss < curve[0].loss


def test_a_loss_that_is_not_finite_stops_with_step_and_sigma_and_saves_nothing(tmp_path):
    run = trainer(tmp_path)
    target = run.training.target

    def broken(x0, sigma, z, neighbors):
        wanted = target(x0, sigma, z, neighbors)
        return wanted * float("nan") if run.training.step == 2 else wanted

    run.training.target = broken
    with pytest.raises(DivergedError, match=r"nan at step 2, sigma [0-9.]+.*learning_rate"):
        list(run.run())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [2, 11])
def test_a_gradient_that_is_not_finite_stops_though_the_losses_are_and_saves_nothing(tmp_path, step):
    """After the last step, 11, no loss would show it: the weights would be written as NaN."""
    run = trainer(tmp_path, checkpoint_every=100, log_every=100)
    run.training.network.head.weight.register_hook(
        lambda grad: grad * float("inf") if run.training.step == step else grad
    )
    with pytest.raises(DivergedError, match=rf"the gradient is (nan|inf) at step {step}: lower .*learning_rate"):
        list(run.run())
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_found_at_the_time_limit_too(tmp_path):
    run = trainer(tmp_path, max_seconds=1e-6)
    run.training.target = lambda x0, sigma, z, neighbors: z * float("nan")
    with pytest.raises(DivergedError, match="nan at step 0"):
        list(run.run())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("warm", [True, False])
def test_training_is_methods_4_written_out(tmp_path, conditioned, warm):
    """1/2 |F + z|^2 summed over pixels, mean over images; clip, warm-up, torch's AdamW; then the average, whose decay
    rises as (1 + n)/(10 + n) to `ema`. Levels are drawn from the discrete ones."""
    ema = 0.9 if warm else 0.2  # never reached in 8 steps, and from the third on
    options = {"steps": 8, "clip": 0.5, "weight_decay": 0.02, "ema": ema, "warmup": 5 if warm else 0, "flip": False}
    params = OPTIMIZATION.model_copy(update={**options, "decay": "constant"})
    still = NETWORK.model_copy(update={"dropout": 0.0})
    data = TrainingSet(images(), None)
    build = lambda: NCSNpp(still, 1, 8, conditioned, 0.01, 5.0)  # noqa: E731
    run = Trainer(start_training(params, LEVELS, build, data, denoising_target, conditioned, seed=1), tmp_path, {})
    network = NCSNpp(still, 1, 8, conditioned, 0.01, 5.0)
    network.load_state_dict(run.training.network.state_dict())
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.02)
    list(run.run())
    clipped = 0
    for step in range(8):
        numbers = torch.arange(8 * step, 8 * step + 8)
        x0 = data.images[run.training.order.rows(step)] / 255
        stratum = (torch.arange(8) + uniform(1, numbers, 0, 1)[:, 0]) / 8
        sigma = 5.0 * (0.01 / 5.0) ** ((100 * stratum).long() / 99)
        z = normal(1, numbers, 1, (1, 8, 8))
        x, level = x0 + sigma[:, None, None, None].float() * z, sigma.float() if conditioned else None
        loss = (0.5 * (network(x, level) + z) ** 2).sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        clipped += bool(torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5) > 0.5)
        optimizer.param_groups[0]["lr"] = 1e-3 * (min(1, (step + 1) / 5) if warm else 1)
        optimizer.step()
        decay = min(ema, (1 + step) / (10 + step))
        for name, p in network.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    assert clipped
    moved = torch.cat([(average[name] - p).flatten() for name, p in network.named_parameters()])
    assert float(moved.detach().abs().max()) > 1e-4  # the average is not the network
    for name, p in run.average.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=0, atol=2e-5, msg=name)


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("microbatch", [1, 3, 4])
def test_accumulated_passes_equal_one_batch(tmp_path, microbatch):
    """Levels, noise and flips follow the place in the batch, so only the order of summation differs.

    AdamW's step is the learning rate times a ratio near 1 whatever the gradient's size, so a gradient at the size of
    its rounding may turn its sign: the weights may differ by up to 2 x learning rate x steps there. Averaged weights
    therefore get the bound 12 steps x 1e-3 x 2; the gradient itself is compared tightly.
    """
    still = NETWORK.model_copy(update={"dropout": 0.0})
    whole, cut = (trainer(tmp_path / str(m), network=still, microbatch=m) for m in (None, microbatch))
    gradients = []
    for run in (whole, cut):
        for start in range(0, 8, run.training.params.microbatch or 8):
            add_gradient(run.training, start, min(start + (run.training.params.microbatch or 8), 8))
        gradients.append(torch.cat([p.grad.flatten() for p in run.training.network.parameters()]))
        run.training.optimizer.zero_grad()
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5 * scale)
    curves = [list(run.run()) for run in (whole, cut)]
    assert [p.loss for p in curves[0]] == pytest.approx([p.loss for p in curves[1]], rel=1e-3)
    assert largest_difference(weights(whole), weights(cut)) < 2 * 12 * 1e-3


@pytest.mark.parametrize("size", [2, 4])
def test_the_mean_of_the_processes_gradients_is_the_whole_batchs(tmp_path, size):
    """AdamW forgives a constant factor, the clip does not."""
    run, gradients = trainer(tmp_path, network=NETWORK.model_copy(update={"dropout": 0.0})), []
    for world in (World(), *(World(rank, size) for rank in range(size))):
        run.training.world = world
        add_gradient(run.training, *world.span(8))
        gradients.append(torch.cat([p.grad.flatten() for p in run.training.network.parameters()]))
        run.training.optimizer.zero_grad()
    whole, mean = gradients[0], torch.stack(gradients[1:]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_dropout_of_later_passes_is_their_own(tmp_path):
    """The second half of a batch must not repeat the masks of the first."""
    run = trainer(tmp_path, microbatch=4)
    seeds = []
    run.training.forward = lambda x, sigma: (seeds.append(torch.initial_seed()), run.training.network(x, sigma))[1]
    next(train_steps(run.training))
    assert len(set(seeds)) == 2


def test_half_of_the_images_are_mirrored_together_with_their_neighbours(tmp_path):
    """Whether an image is mirrored plays no part in its level and noise."""
    pixels = images()
    lists = (torch.arange(10)[:, None] + torch.tensor([0, 4, 7])) % 10
    seen = {True: [], False: []}
    for flip, into in seen.items():

        def target(x0, sigma, z, neighbors, into=into):
            into.append((x0, sigma, z, neighbors))
            return -z

        list(trainer(tmp_path / str(flip), TrainingSet(pixels, lists), target, flip=flip).run())
    mirrored = []
    for (x0, sigma, z, near), (plain, own_sigma, own_z, own_near) in zip(seen[True], seen[False], strict=True):
        assert torch.equal(sigma, own_sigma)
        assert torch.equal(z, own_z)
        for b in range(len(x0)):
            mirror = not torch.equal(x0[b], plain[b])
            assert torch.equal(x0[b], plain[b].flip(-1) if mirror else plain[b])
            assert torch.equal(near[b], own_near[b].flip(-1) if mirror else own_near[b])
            mirrored.append(mirror)
    assert len(mirrored) == 96
    assert abs(sum(mirrored) - 48) < 5 * np.sqrt(96) / 2


@pytest.mark.parametrize("flip", [False, True])
def test_memory_mapped_images_and_neighbours_give_the_same_weights(tmp_path, flip):
    """uint8 (M, H, W, C) from a file, gathered row by row, against the whole set as a tensor: bit for bit."""
    pixels = images()
    lists = torch.cdist(*2 * (pixels.flatten(1).float(),)).argsort(1)[:, :4]
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(10, 8, 8, 1))
    mapped[:] = pixels.permute(0, 2, 3, 1).numpy()
    target = temperature_target(temperature_rule(9.0, 64), 1.0, 62)
    sets = TrainingSet(pixels, lists), open_training_set(mapped, lists.numpy(), torch.device("cpu"))
    assert sets[1].images.data_ptr() == mapped.ctypes.data  # not copied
    runs = [trainer(tmp_path / str(n), data, target, steps=4, flip=flip) for n, data in enumerate(sets)]
    for run in runs:
        list(run.run())
    assert_identical(*(weights(run) for run in runs))
    x0, near = sets[1].take(torch.tensor([3, 7]))
    assert torch.equal(near[:, 0], x0)
    for one, other in zip(sets[0].take(torch.tensor([3, 7])), (x0, near), strict=True):
        assert one.stride() == other.stride()  # the memory format decides which kernels run, and so the rounding
    assert torch.equal(near[1, 2, 0], pixels[lists[7, 2], 0].float() / 255)


def test_a_target_in_bfloat16_would_lose_its_digits_so_only_the_network_is_cast(tmp_path):
    """The sum over neighbours is a matrix product, which autocast would round to 8 bits."""
    pixels = images()
    lists = torch.cdist(*2 * (pixels.flatten(1).float(),)).argsort(1)[:, :4]
    target, seen = temperature_target(temperature_rule(9.0, 64), 10.0, 62), {}
    for precision in ("float32", "bfloat16"):
        seen[precision] = []

        def watched(x0, sigma, z, near, into=seen[precision]):
            into.append(target(x0, sigma, z, near))
            return into[-1]

        run = trainer(tmp_path / precision, TrainingSet(pixels, lists), watched, precision=precision)
        types = set()
        run.training.network.head.register_forward_hook(lambda module, inputs, out, into=types: into.add(out.dtype))
        next(train_steps(run.training))
        assert types == {getattr(torch, precision)}
    assert torch.equal(seen["float32"][0], seen["bfloat16"][0])


@pytest.mark.parametrize(("count", "batch"), [(10, 8), (5, 8), (3, 10), (10, 5)])
def test_every_epoch_shows_every_image_once(count, batch):
    order = EpochOrder(count, batch, seed=3)
    rows = torch.cat([order.rows(step) for step in range(30)])[: 30 * batch // count * count].reshape(-1, count)
    assert (rows.sort(1).values == torch.arange(count)).all()
    assert not torch.equal(rows[0], rows[1]) or count < 4
    fresh = EpochOrder(count, batch, seed=3)
    assert torch.equal(fresh.rows(17), order.rows(17))


def test_another_seed_gives_another_order_and_other_dropout_masks():
    """torch's CPU generator keeps the low 32 bits of its seed: numbers must not be shifted past them."""
    orders = [torch.cat([EpochOrder(100, 10, seed).rows(step) for step in range(10)]) for seed in (0, 1, 2, 1 << 31)]
    masks = []
    for seed, step in [(0, 0), (0, 1), (1, 0), (1 << 31, 0)]:
        torch.manual_seed(generator_seed(seed, step, 0))
        masks.append(torch.rand(20))
    for drawn in (orders, masks):
        assert len({tuple(values.tolist()) for values in drawn}) == 4


def test_levels_are_uniform_over_batches_and_spread_within_one():
    whole = stratified(uniform(0, torch.arange(8), 0, 1)[:, 0], 100)
    parts = [stratified(uniform(0, torch.arange(a, a + 4), 0, 1)[:, 0], 100, a, 8) for a in (0, 4)]
    assert torch.equal(torch.cat(parts), whole)
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
