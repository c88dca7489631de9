"""What temperature smoothing costs a training step: python -m benchmarks.training_step [--channels 128 --batch 8]
    python -m benchmarks.training_step --only adaptive    # temperatures that depend on the point

The CIFAR-10 network of METHODS §4 (32 x 32 x 3, 4 blocks, attention at 16) on 50,000 random images: a conditioning-form
step, temperature steps over K = 30 and K = 100 precomputed neighbours, near ones (pixel lists of a sorted set) and
scattered ones (feature lists), and K = 30 with the neighbours found in the step, as the paper's released code does:
ResNet-18 on the batch at 224 px, then cosine similarity with the features of all 50,000. Temperatures that follow the
point are timed over pixel lists: the eigenvalues and entropies that find them belong to the step.
"""

import argparse
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks import published
from benchmarks.published import NOISE, SHAPE
from benchmarks.turns import in_turns
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NetworkParams, ScoreSpec
from stages.diffusion.targets import Target, build_target, denoising_target, temperature_target
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import start_training
from stages.diffusion.training_set import TrainingSet

COUNT = 50_000
PARTS = ("fixed", "adaptive", "search")
ADAPTIVE = ("nonexpansive", "perplexity(10)")


def trainer(
    network: NetworkParams,
    batch: int,
    images: torch.Tensor,
    folder: Path,
    precision: str = "auto",
    conditioned: bool = False,
    compiled: bool = False,
) -> Trainer:
    """A training run of the published kind. images: uint8 (M, C, H, W)."""
    optimization = published.optimization(batch=batch, compile=compiled, precision=precision)

    def build() -> NCSNpp:
        return NCSNpp(network, images.shape[1], images.shape[2], conditioned, NOISE.sigma_min, NOISE.sigma_max)

    data = TrainingSet(images, None)
    return Trainer(
        start_training(optimization, NOISE, build, data, denoising_target, conditioned, published.SEED), folder, {}
    )


def step(run: Trainer, target: Target, neighbors: torch.Tensor | None) -> None:
    """One optimizer step of the one network (five would not fit into memory) with this target and these lists."""
    training = run.training
    training.target, training.data = target, TrainingSet(training.data.images, neighbors)
    next(run.steps())


def smoothing(run: Trainer, target: Target, neighbors: torch.Tensor) -> None:
    """What a temperature step does more than a conditioning step, alone: neighbours' pixels, weights, target."""
    training = run.training
    rows = training.order.rows(training.step)
    sigma = training.sigmas[torch.linspace(0, len(training.sigmas) - 1, len(rows)).long()]
    x0, near = TrainingSet(training.data.images, neighbors).take(rows)
    target(x0, sigma, torch.randn_like(x0), near)


def finder(features: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """(batch in [0,1]) -> 30 nearest rows by the features of a ResNet-18 at 224 px (random weights: same work)."""
    from torchvision.models import resnet18

    encoder = resnet18(weights=None).eval()
    encoder.fc = torch.nn.Identity()

    @torch.no_grad()
    def find(x: torch.Tensor) -> torch.Tensor:
        large = functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
        return (functional.normalize(encoder(large)) @ features.T).topk(30).indices

    return find


def adaptive_target(rule: str, dimension: int) -> Target:
    """The target of a temperature that follows the point, at all levels."""
    near = {"space": "pixel", "k": 30}  # the lists say how many there are
    return build_target(ScoreSpec(score="network", form="temperature", temperature=rule, neighbors=near), dimension)


def searching(run: Trainer, target: Target, neighbors: torch.Tensor) -> Callable[[], None]:
    """A step whose neighbours are found first, of random features."""
    find = finder(functional.normalize(torch.randn(COUNT, 512)))

    def searched() -> None:
        find(run.training.data.take(run.training.order.rows(run.training.step))[0])
        step(run, target, neighbors)

    return searched


def main() -> None:
    """Time every form in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128, help="128 as published")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randint(0, 256, (COUNT, *SHAPE), dtype=torch.uint8)
    own = torch.arange(COUNT)[:, None]
    lists = {
        "pixel": (own + torch.arange(100)) % COUNT,
        "feature": torch.cat((own, torch.randint(0, COUNT, (COUNT, 99))), 1),
    }
    dimension = images[0].numel()
    fixed = {"": temperature_target(lambda sigma: (5 / sigma).clamp_min(1.0), None, dimension - 2)}
    adaptive = {f"{rule}, ": adaptive_target(rule, dimension) for rule in ADAPTIVE}
    network = published.network(channels=arguments.channels)
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(network, arguments.batch, images, Path(folder))
        candidates = {"conditioning": lambda: step(run, denoising_target, None)}
        more: dict[str, Callable[[], None]] = {}
        for targets, spaces, part in ((fixed, lists, "fixed"), (adaptive, ["pixel"], "adaptive")):
            for (name, target), space, k in itertools.product(targets.items(), spaces, (30, 100)):
                if part in arguments.only:
                    near = lists[space][:, :k]
                    candidates[f"{name}{space} K={k}"] = functools.partial(step, run, target, near)
                    more[f"{name}{space} K={k}"] = functools.partial(smoothing, run, target, near)
        if "search" in arguments.only:
            candidates["found in the step K=30"] = searching(run, fixed[""], lists["feature"][:, :30])
        times = in_turns(candidates, arguments.rounds)
        alone = in_turns(more, 20)
    base = times["conditioning"]
    for name, seconds in times.items():
        print(f"{name:28} {seconds:8.3f} s per step, ratio to conditioning {seconds / base:.4f}")
    for name, seconds in alone.items():
        print(f"{name:28} {1e3 * seconds:8.2f} ms for the smoothed target alone, {1 + seconds / base:.4f} of a step")
    result = {name: round(seconds / base, 4) for name, seconds in times.items()}
    result |= {f"{name}, 1 + target/step": round(1 + seconds / base, 4) for name, seconds in alone.items()}
    sizes = {"channels": arguments.channels, "batch": arguments.batch, "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "training_step", **sizes, "cores": os.cpu_count(), "ratio": result}))


if __name__ == "__main__":
    main()
