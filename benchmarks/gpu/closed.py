"""The closed-form score beside a softmax over torch.cdist."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.setup import synchronise
from benchmarks.published import NOISE
from benchmarks.turns import in_turns
from stages.diffusion import noise
from stages.diffusion.scores import conditioning, make_centres


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
