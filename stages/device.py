"""The device that does the work, with the memory format and the precision that suit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> str:
    """Return the device for "auto" (a GPU when there is one), "cpu" or "cuda".

    Raises InputError when a GPU is demanded and none is visible.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' and no GPU is visible: set device to 'auto' or 'cpu'")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout in which a convolutional network with GroupNorm is fastest: channels_last on a GPU.

    On a CPU it is the plain one: channels_last makes convolutions 10 % faster, but GroupNorm 6 (float32) to 11
    (bfloat16) times slower.
    """
    import torch

    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether products run in bfloat16: for "bfloat16", and for "auto" on a device with instructions for it."""
    import torch

    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()
