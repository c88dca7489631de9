"""What takes a GPU, in one command of at most half an hour: step costs, copies of a small set, samples per second.

    python benchmarks/gpu.py IMAGES [--scale full|small] [--only cost|copies|samplers|rate|closed|peer ...]
                                    [--minutes 12] [--out gpu]

IMAGES: CIFAR-10 as parquet (Hugging Face layout), or an npz with `images` uint8 (N, H, W, C) and `labels` (N,).

cost      seconds per step and peak memory of conditioning, unconditioning, pixel and feature neighbours at CIFAR-10
          size (METHODS §3, §9), the four taking turns.
copies    1,000 images of one class and 200 of another: conditioning, unconditioning and three temperatures are trained
          and sampled, 1,000 samples each: #mem, mean and min of r1/r2 (METHODS §9), and the same for held-out images.
samplers  samples per second of every sampler with the CIFAR-10 network.
rate      share of the device's matrix rate that a training step of that network reaches, and where the rest goes.
closed    the closed-form score over the images against a softmax over torch.cdist: speed, and how far off that is.
peer      the network beside diffusers' UNet2DModel, as it comes and compiled; needs diffusers, the others do not.

Results are merged into OUT/gpu.json, so that the parts may run one by one; training goes on from its checkpoints. The
last line is that JSON. Needs torch, numpy, pydantic, pyyaml, pyarrow, pillow, safetensors and tqdm, and neither
prefect, dvc nor faiss. --scale small is the same code on a CPU, in minutes.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import step_profile  # noqa: E402
from tools.turns import in_turns  # noqa: E402

from stages.device import uses_bfloat16  # noqa: E402
from stages.diffusion import noise, sampling  # noqa: E402
from stages.diffusion.losses import denoising_target, temperature_target  # noqa: E402
from stages.diffusion.network import NCSNpp  # noqa: E402
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant  # noqa: E402
from stages.diffusion.scores import conditioning, make_centres, shell_power  # noqa: E402
from stages.diffusion.training import Progress, Trainer  # noqa: E402
from stages.diffusion.training_set import open_training_set  # noqa: E402
from stages.diffusion.variants import temperature_rule  # noqa: E402
from stages.files.artifacts import write_json  # noqa: E402
from stages.images.sources import open_source  # noqa: E402
from stages.memorization.ratios import nn_ratio  # noqa: E402
from stages.search.nearest import nearest  # noqa: E402

PARTS = ("cost", "copies", "samplers", "rate", "closed", "peer")
OTHERS = " ".join(PARTS[:-1])
NOISE = NoiseParams(sigma_min=0.01, sigma_max=50.0)
PAPER = NetworkParams(
    channels=128, multipliers=[1, 2, 2, 2], blocks=4, attention=[16], patch=1, dropout=0.1, embedding="positional",
    fir=True, progressive_input=True, amplitude="raw",
)  # fmt: skip
OPTIMIZATION = OptimizationParams(
    steps=1_000_000, batch=128, microbatch=None, learning_rate=2e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=500,
    decay="constant", clip=1.0, ema=0.999, levels=1000, flip=False, precision="auto", compile=False, seed=42,
    checkpoint_every=2000, keep=1, log_every=50, max_seconds=None,
)  # fmt: skip
MODELS = {
    "conditioning": {"form": "conditioning"},
    "unconditioning": {"form": "unconditioning"},
    **{
        f"temperature {c}/sigma": {
            "form": "temperature", "temperature": f"{c}/sigma", "neighbors": {"space": "pixel", "k": 10},
        }
        for c in (1, 7, 10)
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        cost: network, images, batch, neighbours, steps per turn and turns of the cost table.
        small: the network that copies, its optimization, and how many images of each class.
        side: of the images (their own, or halved by averaging).
        samples, levels, batch: per model; predictor and corrector at every level.
        probe: levels and batch of the samplers' part.
        rate: network and batch of the part rate, and of the part peer channels, batch and rounds.
    """

    cost: tuple[NetworkParams, int, int, int, int, int]
    small: tuple[NetworkParams, OptimizationParams, tuple[int, int], int]
    side: int
    samples: int
    levels: int
    batch: int
    probe: tuple[int, int]
    rate: tuple[str, int]
    peer: tuple[int, int, int]


def scale(name: str, compiled: bool) -> Scale:
    """The two sizes: a GPU's, and one that a CPU ends in minutes."""
    if name == "full":
        copier = PAPER.model_copy(update={"channels": 64, "blocks": 2, "dropout": 0.0})
        optimization = OPTIMIZATION.model_copy(update={"learning_rate": 5e-4, "compile": compiled, "steps": 40_000})
        return Scale((PAPER, 50_000, 128, 30, 20, 3), (copier, optimization, (1000, 200), 1000), 32, 1000, 250, 500,
                     (20, 256), ("cifar10", 128), (128, 128, 10))  # fmt: skip
    tiny = PAPER.model_copy(update={"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": []})
    changes = {"batch": 16, "learning_rate": 2e-3, "warmup": 20, "ema": 0.99, "steps": 400, "precision": "float32"}
    optimization = OPTIMIZATION.model_copy(update=changes)
    return Scale((tiny, 500, 8, 5, 2, 2), (tiny.model_copy(update={"dropout": 0.0}), optimization, (25, 5), 30), 16, 30,
                 15, 30, (3, 8), ("default", 2), (32, 2, 1))  # fmt: skip


def spec(model: dict[str, Any], sampler: dict[str, Any]) -> Variant:
    """A network's variant."""
    return Variant(score="network", sampler=sampler, **model)


def make_trainer(
    variant: Variant, network: NetworkParams, optimization: OptimizationParams, images: np.ndarray,
    neighbors: np.ndarray | None, device: torch.device, scratch: Path,
) -> Trainer:  # fmt: skip
    """The trainer of stage train, without its files. images: uint8 (M, H, W, C)."""
    _, height, _, channels = images.shape
    dimension, target = images[0].size, denoising_target
    if variant.temperature is not None:
        rule = temperature_rule(variant.temperature, dimension)
        target = temperature_target(rule, None, shell_power(dimension), variant.precision)

    def build() -> NCSNpp:
        return NCSNpp(network, channels, height, variant.conditioned, NOISE.sigma_min, NOISE.sigma_max)

    identity = {
        "spec": variant.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "optimization": optimization.model_dump(mode="json", exclude={"max_seconds"}),  # more time may be given later
        "images": hashlib.sha256(images.tobytes()).hexdigest(),
    }
    data = open_training_set(images, neighbors, device)
    return Trainer(optimization, NOISE, build, data, target, variant.conditioned, scratch, identity)


def synchronise(device: torch.device) -> None:
    """Wait for what the GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cost(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """Seconds per step and peak memory of the four kinds of training, taking turns. Images and lists are random: which
    rows a step gathers costs the same whatever they show, and lists are ready before training in both spaces."""
    network, count, batch, k, steps, turns = size.cost
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    optimization = OPTIMIZATION.model_copy(update={"batch": batch, "compile": compiled, "precision": "auto"})
    temperature = {"form": "temperature", "temperature": "1/sigma"}
    rows = {
        "conditioning": {"form": "conditioning"},
        "unconditioning": {"form": "unconditioning"},
        "pixel neighbours": {**temperature, "neighbors": {"space": "pixel", "k": k}},
        "feature neighbours": {**temperature, "neighbors": {"space": "feature", "k": k}},
    }
    trainers, own, seconds, peaks = {}, {}, {name: [] for name in rows}, {name: 0 for name in rows}
    for name, model in rows.items():
        before = allocated(device)
        lists = None
        if "neighbors" in model:
            lists = np.concatenate([np.arange(count)[:, None], generator.integers(0, count, (count, k - 1))], axis=1)
        variant = spec(model, {"name": "euler", "levels": 2})
        trainers[name] = make_trainer(variant, network, optimization, images, lists, device, Path("unused"))
        for _ in range(2):  # compiles, and makes the optimizer's state
            advance(trainers[name])
        synchronise(device)
        own[name] = allocated(device) - before
    for _ in range(turns):
        for name, trainer in trainers.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            for _ in range(steps):
                advance(trainer)
            synchronise(device)
            seconds[name].append((time.perf_counter() - started) / steps)
            if device.type == "cuda":
                others = sum(own.values()) - own[name]
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device) - others)
    table = {
        name: {
            "seconds_per_step": round(min(values), 5),
            "over_conditioning": round(min(values) / min(seconds["conditioning"]), 4),
            "peak_gb": round(peaks[name] / 1e9, 2) if device.type == "cuda" else None,
        }
        for name, values in seconds.items()
    }
    return {"batch": batch, "images": count, "k": k, "compile": compiled, "rows": table}


def advance(trainer: Trainer) -> None:
    """One training step, and nothing read back from the GPU."""
    trainer._step()
    trainer.state.step += 1


def allocated(device: torch.device) -> int:
    """Bytes of GPU memory in use by tensors."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def copies(
    size: Scale, device: torch.device, train: np.ndarray, held_out: np.ndarray, out: Path, minutes: float
) -> dict[str, Any]:
    """Train, sample and count: one row per model, and the held-out images' row."""
    network, optimization, _, _ = size.small
    flat = train.reshape(len(train), -1)
    lists = np.concatenate([np.arange(len(train))[:, None],
                            nearest(flat, flat, 9, exclude=np.arange(len(train)))[0]], axis=1)  # fmt: skip
    optimization = optimization.model_copy(update={"max_seconds": 60 * minutes / len(MODELS)})
    sampler = {"name": "reverse-sde", "levels": size.levels, "snr": 0.16}
    rows = {"held-out images": ratios(held_out, flat)}
    for name, model in MODELS.items():
        variant = spec(model, sampler)
        scratch = out / "checkpoints" / name.replace("/", "-over-").replace(" ", "-")
        trainer = make_trainer(variant, network, optimization, train, lists if variant.neighbors else None, device,
                               scratch)  # fmt: skip
        trainer.resume()
        started, last = time.perf_counter(), None
        for found in trainer.run():
            last = found if isinstance(found, Progress) else last
        trained = time.perf_counter() - started
        how = optimization.precision, optimization.compile
        model_ = sampling.make_model(variant, NOISE, train, trainer.state.average, device, *how)
        started = time.perf_counter()
        samples = sampling.draw_samples(model_, 0, size.samples, size.batch)
        rows[name] = ratios(samples, flat) | {
            "steps": trainer.state.step,
            "seconds_training": round(trained, 1),
            "seconds_sampling": round(time.perf_counter() - started, 1),
            "loss": None if last is None else round(last.loss, 5),
        }
        picture(out / f"samples {name.replace('/', ' over ')}.png", samples[:64])
        show(name, rows[name])
        del trainer, model_
        forget()
    return {"images": len(train), "levels": size.levels, "evaluations": 2 * size.levels, "rows": rows}


def forget() -> None:
    """Free what is no longer used, compiled code included: the compiler gives up on code that it has met too often."""
    gc.collect()
    torch.compiler.reset()


def ratios(images: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """#mem (r1/r2 < 0.7), mean and min of r1/r2. images: uint8 (N, H, W, C); train: uint8 (M, d)."""
    ratio = nn_ratio(nearest(images.reshape(len(images), -1), train, 2)[1])
    summary = {"mean": round(float(ratio.mean()), 4), "min": round(float(ratio.min()), 4)}
    return {"images": len(images), "mem": int((ratio < 0.7).sum()), **summary}


def picture(path: Path, images: np.ndarray) -> None:
    """A strip of rows of eight. images: uint8 (N, H, W, C)."""
    from PIL import Image

    images = images[: len(images) // 8 * 8]
    rows = images.reshape(-1, 8, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    Image.fromarray(rows.reshape(-1, 8 * images.shape[2], images.shape[3])).save(path)


def samplers(size: Scale, device: torch.device, train: np.ndarray, compiled: bool) -> dict[str, Any]:
    """Samples and evaluations per second of each sampler with the network of the cost table, its weights untrained."""
    levels, batch = size.probe
    _, height, _, channels = train.shape
    half = uses_bfloat16("auto", device)

    def prepared(conditioned: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        network = NCSNpp(size.cost[0], channels, height, conditioned, NOISE.sigma_min, NOISE.sigma_max)
        return sampling.prepare_network(network, device, half, compiled)

    networks = {conditioned: prepared(conditioned) for conditioned in (True, False)}
    own = {
        "actual-noise": {"step": 0.16, "exact_below": 50.0},
        "gradient-ascent": {"step": 0.16, "stop_below": 1e-9},
        "reverse-sde": {"snr": 0.16},
        "reverse-ode": {"snr": 0.16},
    }
    rows = {}
    for name in sampling.SAMPLERS:
        sampler = {"name": name, "levels": levels, **own.get(name, {})}
        if name == "cfdm":
            variant = Variant(score="closed-form", form="cfdm", kernel={"h": 0.3, "draws": 4}, sampler=sampler)
            network = None
        else:
            blind = name in ("actual-noise", "gradient-ascent")
            variant = spec(MODELS["unconditioning" if blind else "conditioning"], sampler)
            network = networks[variant.conditioned]
        model = sampling.Model(variant, noise.levels(NOISE, levels), train, device, network, half)
        sampling.sample_batch(model, 0, torch.arange(batch))  # warm-up
        synchronise(device)
        started = time.perf_counter()
        sampling.sample_batch(model, 1, torch.arange(batch))
        seconds = time.perf_counter() - started
        evaluations = variant.sampler.evaluations
        rows[name] = {
            "evaluations": evaluations,
            "evaluations_per_second": round(batch * evaluations / seconds, 1),
            "samples_per_second_at_1000_evaluations": round(batch * evaluations / seconds / 1000, 4),
        }
        show(name, rows[name])
    return {"levels": levels, "batch": batch, "compile": compiled, "rows": rows}


def rate(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """See step_profile.py; with the compiler, and without, where the profile names every operator."""
    network, batch = size.rate
    return {
        "rows": {
            name: step_profile.measure(network, batch, "auto", device, fused)
            for name, fused in {"compiled": True, "eager": False}.items()
            if compiled or not fused
        }
    }


def closed(device: torch.device, images: np.ndarray) -> dict[str, Any]:
    """Seconds per evaluation of 100 noised images at levels from 50 to 0.01, in turns with a softmax over cdist in
    float32, and the largest relative deviation of the two at each level."""
    flat = torch.from_numpy(images.reshape(len(images), -1)).to(device)
    centres, unit, rows = make_centres(flat), flat.float() / 255, {}
    chosen = torch.arange(100, device=device) * (len(flat) // 100)
    for sigma in np.geomspace(NOISE.sigma_max, NOISE.sigma_min, 8):
        z = noise.normal(0, chosen, 0, (flat.shape[1],))
        x, level = unit[chosen] + float(sigma) * z, torch.full((100,), float(sigma), dtype=torch.float64, device=device)

        def ours(x: torch.Tensor = x, level: torch.Tensor = level) -> torch.Tensor:
            found = conditioning(centres, x.double(), level)
            synchronise(device)
            return found

        def plain(x: torch.Tensor = x, sigma: float = float(sigma)) -> torch.Tensor:
            weight = torch.softmax(-torch.cdist(x, unit).square() / (2 * sigma**2), dim=1)
            found = (weight @ unit - x) / sigma**2
            synchronise(device)
            return found

        clock = time.perf_counter if device.type == "cuda" else time.process_time
        seconds = in_turns({"ours": ours, "cdist": plain}, 5, clock)
        exact = ours()
        off = ((plain() - exact).norm(dim=1) / exact.norm(dim=1)).max()
        rows[f"sigma {sigma:.3g}"] = {
            "seconds": round(seconds["ours"], 5), "times_as_fast": round(seconds["cdist"] / seconds["ours"], 2),
            "cdist_is_off_by": float(f"{float(off):.2g}"),
        }  # fmt: skip
    return {"centres": len(images), "samples": 100, "rows": rows}


def peer(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """How many times as fast ours is than diffusers', in bfloat16; see diffusers_unet.py."""
    import diffusers_unet

    channels, batch, rounds = size.peer
    times = diffusers_unet.compare(channels, batch, "bfloat16", rounds, device, compiled)
    rows = {name: {"seconds_per_step": round(seconds, 5)} for name, seconds in times.items()}
    return {"batch": batch, "times_as_fast": diffusers_unet.ratios(times, "bfloat16"), "rows": rows}


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and labels (N,) of an npz, or of the parquet's first 50,000 rows."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["images"], file["labels"]
    source = open_source(f"parquet:{path}")
    rows = np.arange(min(len(source), 50_000))
    read = [item for item in source.read(rows) if item.error is None]
    return np.stack([item.image for item in read]), np.array([item.label for item in read])


def two_classes(size: Scale, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images of classes 3 and 5 (cat and dog in CIFAR-10), in the file's order."""
    many, few = size.small[2]
    rest = size.small[3]
    rows = [np.flatnonzero(labels == label) for label in (3, 5)]
    if len(rows[0]) < many + rest or len(rows[1]) < few:
        raise SystemExit(
            f"error: {len(rows[0])} and {len(rows[1])} images of labels 3 and 5: need {many + rest}, {few}"
        )
    factor = images.shape[1] // size.side
    if factor > 1:  # means of factor x factor pixels
        n, h, w, c = images.shape
        blocks = images.reshape(n, h // factor, factor, w // factor, factor, c).astype(np.float32)
        images = blocks.mean((2, 4)).round().astype(np.uint8)
    chosen = np.concatenate([rows[0][:many], rows[1][:few]])
    return images[chosen], images[rows[0][many : many + rest]]


def installed(name: str) -> bool:
    """Whether the package is there."""
    try:
        return find_spec(name) is not None
    except ValueError:  # blocked
        return False


def show(name: str, row: dict[str, Any]) -> None:
    """One row, as it is ready."""
    print(f"  {name:22}", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training in all, for the part copies")
    parser.add_argument("--eager", action="store_true", help="do not compile the networks")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    arguments = parser.parse_args()
    if arguments.scale == "full" and not torch.cuda.is_available():
        raise SystemExit("error: --scale full needs a GPU and none is visible: use --scale small")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = arguments.scale == "full" and not arguments.eager
    size, parts = scale(arguments.scale, compiled), arguments.only or PARTS
    if "peer" in parts and not installed("diffusers"):
        raise SystemExit(f"error: the part peer needs diffusers: install it, or name the others: --only {OTHERS}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "gpu.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found |= {"device": name, "scale": arguments.scale, "torch": torch.__version__}
    images, labels = load(arguments.images)
    train, held_out = two_classes(size, images, labels)
    work = {
        "cost": lambda: cost(size, device, compiled),
        "copies": lambda: copies(size, device, train, held_out, arguments.out, arguments.minutes),
        "samplers": lambda: samplers(size, device, train, compiled),
        "rate": lambda: rate(size, device, compiled),
        "closed": lambda: closed(device, images),
        "peer": lambda: peer(size, device, compiled),
    }
    for part in parts:
        print(part, flush=True)
        started = time.perf_counter()
        found[part] = work[part]() | {"seconds": 0.0}
        found[part]["seconds"] = round(time.perf_counter() - started, 1)
        for row, values in found[part]["rows"].items() if part not in ("copies", "samplers") else ():
            show(row, values)
        write_json(results, found)
        forget()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
