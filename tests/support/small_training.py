"""A training of a small network on ten random images."""

import torch

from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams
from stages.diffusion.targets import denoising_target
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import start_training
from stages.diffusion.training_set import TrainingSet

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
    skip_above=None,
)
LEVELS = NoiseParams(sigma_min=0.01, sigma_max=5)
OPTIMIZATION = OptimizationParams(
    steps=12,
    batch=8,
    microbatch=None,
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
    checkpoint_every=4,
    keep=2,
    log_every=3,
    max_seconds=None,
)


def images(count=10):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trainer(scratch, data=None, target=denoising_target, network=NETWORK, seed=1, **changes):
    params = OPTIMIZATION.model_copy(update=changes)
    data = TrainingSet(images(), None) if data is None else data
    training = start_training(params, LEVELS, lambda: NCSNpp(network, 1, 8, True, 0.01, 5.0), data, target, True, seed)
    return Trainer(
        training, scratch, {"optimization": params.model_dump(), "seed": seed, "inputs": {"train.arrow": "abc"}}
    )


def weights(run):
    return {name: tensor.clone() for name, tensor in run.average.state_dict().items()}


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
