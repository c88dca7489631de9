"""Samples per second of every sampler."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.setup import MODELS, Scale, show, spec, synchronise
from benchmarks.published import NOISE
from stages.device import uses_bfloat16
from stages.diffusion import noise
from stages.diffusion.model import Model, prepare_network
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import Variant
from stages.diffusion.samplers import SAMPLERS
from stages.diffusion.sampling import sample_batch


def samplers(size: Scale, device: torch.device, train: np.ndarray, compiled: bool) -> dict[str, Any]:
    """Samples and evaluations per second of each sampler with the network of the cost table, its weights untrained."""
    levels, batch = size.probe
    _, height, _, channels = train.shape
    half = uses_bfloat16("auto", device)

    def prepared(conditioned: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        network = NCSNpp(size.cost[0], channels, height, conditioned, NOISE.sigma_min, NOISE.sigma_max)
        return prepare_network(network, device, half, compiled)

    networks = {conditioned: prepared(conditioned) for conditioned in (True, False)}
    own = {
        "actual-noise": {"step": 0.16, "exact_below": 50.0},
        "gradient-ascent": {"step": 0.16, "stop_below": 1e-9},
        "reverse-sde": {"snr": 0.16},
        "reverse-ode": {"snr": 0.16},
    }
    rows = {}
    for name in SAMPLERS:
        sampler = {"name": name, "levels": levels, **own.get(name, {})}
        if name == "cfdm":
            variant = Variant(score="closed-form", form="cfdm", kernel={"h": 0.3, "draws": 4}, sampler=sampler)
            network = None
        else:
            blind = name in ("actual-noise", "gradient-ascent")
            variant = spec(MODELS["unconditioning" if blind else "conditioning"], sampler)
            network = networks[variant.conditioned]
        model = Model(variant, noise.levels(NOISE, levels), train, device, network, half)
        sample_batch(model, 0, torch.arange(batch))  # warm-up
        synchronise(device)
        started = time.perf_counter()
        sample_batch(model, 1, torch.arange(batch))
        seconds = time.perf_counter() - started
        evaluations = variant.sampler.evaluations
        rows[name] = {
            "evaluations": evaluations,
            "evaluations_per_second": round(batch * evaluations / seconds, 1),
            "samples_per_second_at_1000_evaluations": round(batch * evaluations / seconds / 1000, 4),
        }
        show(name, rows[name])
    return {"levels": levels, "batch": batch, "compile": compiled, "rows": rows}
