"""The CIFAR-10 network beside diffusers' NCSN++ of the same shape: python -m benchmarks.diffusers_unet [--batch 4]

NCSN++ of METHODS §4 with noise conditioning (62.76 M parameters, 21.76 GFLOP per image and pass) and UNet2DModel with
the Skip blocks of google/ncsnpp (61.89 M, 21.73 GFLOP), on 32 x 32 x 3 random images. A training step is ours as
`Trainer` does it (dropout, clip, AdamW, average); theirs has the same loss, clip, optimizer and average in plain
torch. A sampling step is one score. Both run in the same precision on the same device, in turns, with the layout that
each comes with: diffusers leaves the weights as they are, Trainer picks one for the device. On a GPU ours goes through
torch.compile, as the presets ask, and diffusers is timed both as it comes and compiled.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel

from benchmarks import published
from benchmarks.published import SHAPE
from benchmarks.training_step import trainer
from benchmarks.turns import in_turns
from stages.device import uses_bfloat16
from stages.diffusion.model import prepare_network
from stages.diffusion.targets import denoising_target
from stages.diffusion.variants import network_score

DOWN = ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D")
UP = ("SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D")


def theirs(channels: int, device: torch.device) -> UNet2DModel:
    """diffusers' network of the same shape."""
    return UNet2DModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        down_block_types=DOWN,
        up_block_types=UP,
        block_out_channels=(channels, 2 * channels, 2 * channels, 2 * channels),
        layers_per_block=4,
        norm_num_groups=None,
        norm_eps=1e-6,
        attention_head_dim=None,
        time_embedding_type="fourier",
        dropout=0.1,
    ).to(device)


def their_training(network: UNet2DModel, images: torch.Tensor, batch: int, half: bool) -> Callable[[], None]:
    """One step: 1/2 |F(x_0 + sigma z, sigma) + z|^2, clip, AdamW, average."""
    device = images.device
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, fused=True)
    average = [parameter.detach().clone() for parameter in network.parameters()]

    def step() -> None:
        x0 = images[torch.randint(0, len(images), (batch,), device=device)].float() / 255
        sigma = torch.exp(torch.rand(batch, device=device) * 8.5 - 4.6)
        z = torch.randn_like(x0)
        x = x0 + sigma[:, None, None, None] * z
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            out = network(x, sigma).sample
        (0.5 * (out.float() + z).square().flatten(1).sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [parameter.detach() for parameter in network.parameters()], 1e-3)
        synchronise(device)

    return step


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def compare(
    channels: int, batch: int, precision: str, rounds: int, device: torch.device, compiled: bool
) -> dict[str, float]:
    """Seconds of a training and of a sampling step, ours and theirs."""
    half = uses_bfloat16(precision, device)
    images = torch.randint(0, 256, (1000, *SHAPE), dtype=torch.uint8, device=device)
    x, sigma = torch.randn(batch, *SHAPE, device=device), torch.linspace(0.1, 10, batch, device=device)
    peer = theirs(channels, device)
    with tempfile.TemporaryDirectory() as folder:
        network = published.network(channels=channels, embedding="fourier")
        own = trainer(network, batch, images, Path(folder), precision, conditioned=True, compiled=compiled)
        own.training.target = denoising_target
        score = network_score(prepare_network(copy.deepcopy(own.training.network), device, half, compiled), True, half)
        candidates = {}

        def our_training() -> None:
            next(own.steps())
            synchronise(device)

        @torch.inference_mode()
        def our_sampling() -> None:
            score(x, sigma.double())
            synchronise(device)

        for name in ("diffusers", "diffusers compiled") if compiled else ("diffusers",):
            quiet, noisy = copy.deepcopy(peer).eval(), copy.deepcopy(peer)
            if name == "diffusers compiled":
                quiet, noisy = torch.compile(quiet), torch.compile(noisy)
            candidates[f"{name}, training"] = their_training(noisy, images, batch, half)
            candidates[f"{name}, sampling"] = their_sampling(quiet, x, sigma, half)
        candidates |= {"ours, training": our_training, "ours, sampling": our_sampling}
        return in_turns(candidates, rounds, time.perf_counter if device.type == "cuda" else time.process_time)


def their_sampling(network: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor, half: bool) -> Callable[[], None]:
    """One score of diffusers' network."""

    @torch.inference_mode()
    def step() -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            out = network(x, sigma).sample
        out.float() / sigma[:, None, None, None]
        synchronise(x.device)

    return step


def ratios(times: dict[str, float], precision: str) -> dict[str, float]:
    """How many times as fast ours is, by kind, precision and peer."""
    found = {}
    for name, seconds in times.items():
        peer, kind = name.split(", ")
        if peer != "ours":
            found[f"{kind} {precision}, {peer}"] = round(seconds / times[f"ours, {kind}"], 3)
    return found


def main() -> None:
    """Both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128, help="128 as published")
    parser.add_argument("--batch", type=int, default=128 if torch.cuda.is_available() else 4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {}
    for precision in ("float32", "bfloat16"):
        compiled = device.type == "cuda"
        times = compare(arguments.channels, arguments.batch, precision, arguments.rounds, device, compiled)
        for name, seconds in times.items():
            print(f"{precision:9} {name:29} {seconds:8.4f} s per step")
        result |= ratios(times, precision)
    sizes = {"channels": arguments.channels, "batch": arguments.batch, "device": str(device)}
    sizes |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "diffusers_unet", **sizes, "times_as_fast": result}))


if __name__ == "__main__":
    main()
