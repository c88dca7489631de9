"""Which device does the work."""

from stages.errors import InputError


def pick_device(wanted: str) -> str:
    """The device for "auto" (a GPU when there is one), "cpu" or "cuda".

    Raises InputError when a GPU is demanded and none is visible.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' and no GPU is visible: set device to 'auto' or 'cpu'")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
