"""The encoders' networks, ready for inference: strict weights, batch norm folded into the convolutions.

Each function returns a module that maps float32 (B, 3, S, S), preprocessed, to features (B, D).
"""

import dataclasses
import struct
import tempfile
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.errors import InputError, one_line


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file; code in a .pth is never run (weights_only)."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file ({error}): fetch it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, LookupError, TypeError, struct.error) as error:
        # the restricted unpickler raises these on bytes that are not a pickle, or not a pickle of tensors
        raise InputError(f"{path} is not a weights file ({one_line(error)}): fetch it again") from error


def _load(network: nn.Module, path: Path, name: str, unused: frozenset[str] = frozenset()) -> None:
    """Load all weights, strictly; `unused` names tensors that the file may hold in addition."""
    try:
        network.load_state_dict({key: value for key, value in _state(path).items() if key not in unused})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not hold the weights of {name} ({one_line(error)}): name the right file"
        ) from error
    network.eval().requires_grad_(False)


def _fold(owner: nn.Module, convolution: str, norm: str) -> None:
    """Replace a convolution and the batch norm behind it by one convolution with a bias."""
    setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
    setattr(owner, norm, nn.Identity())


class _Pooled(nn.Module):
    """EfficientNet's last feature maps, averaged over the image."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(x).mean((2, 3))


def efficientnet_lite0(path: Path, size: int) -> nn.Module:
    """EfficientNet-Lite0 (no squeeze-and-excitation, ReLU6): the mean of the last 1280 maps, D = 1280."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    _load(network, path, "efficientnet-lite0")
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    for module in network.modules():
        _pad_inside(module)
    for owner in (network, *network._blocks):
        owner._swish = nn.Identity()
        for name in ("_conv_stem", "_conv_head", "_expand_conv", "_depthwise_conv"):
            if hasattr(owner, name):
                setattr(owner, name, _ReLU6(getattr(owner, name)))
    return _Pooled(network)


class _ReLU6(nn.Module):
    """A convolution and ReLU6. In float32 on a processor oneDNN does both in one pass over the maps, with weights that
    are put in its order once: the same bits in 0.8 of the time."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution, self.packed = convolution, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.convolution
        if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return nn.functional.relu6(own(x))
        x, how = own.static_padding(x), (list(own.padding), list(own.stride), list(own.dilation), own.groups)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(own.weight.detach(), *how, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, own.bias, *how, "hardtanh", [0.0, 6.0], "")


def _pad_inside(module: nn.Module) -> None:
    """Let a convolution pad by itself where its padding is equal on all sides, which saves a copy of the maps."""
    padding = getattr(getattr(module, "static_padding", None), "padding", None)
    if padding is not None and len(set(padding)) == 1:
        module.padding = (padding[0], padding[0])
        module.static_padding = nn.Identity()


def resnet18(path: Path) -> nn.Module:
    """ResNet-18 up to its global average pooling, D = 512 (METHODS §1.6)."""
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    _load(network, path, "resnet18")
    _fold(network, "conv1", "bn1")
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            _fold(block, "conv1", "bn1")
            _fold(block, "conv2", "bn2")
            if block.downsample is not None:
                block.downsample = fuse_conv_bn_eval(*block.downsample)
    network.fc = nn.Identity()
    return network


class _Inception(nn.Module):
    """clean-fid's Inception. The JIT's profiling is off, because it would compute the first batches differently."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.jit.optimized_execution(False):
            return self.network(x)


def inception_v3(path: Path) -> nn.Module:
    """clean-fid's InceptionV3 up to pool3, D = 2048, on the TorchScript file of Karras et al.

    Takes pixels 0..255 at 299×299 and normalises inside, as clean-fid does (METHODS §6).
    """
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder:  # clean-fid reads this name in any folder
        Path(folder, "inception-2015-12-05.pt").symlink_to(path.resolve())
        try:
            network: Any = InceptionV3W(folder, download=False, resize_inside=False)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path} is not InceptionV3 in TorchScript ({one_line(error)}): fetch inception-2015-12-05.pt again"
            ) from error
    return _Inception(network.eval().requires_grad_(False))


@dataclasses.dataclass(frozen=True)
class TimmConfig:
    """A model of timm's input side, mean and deviation of the pixels in [0, 1], and D of its features."""

    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    dimension: int


def timm_model(name: str, path: Path | None) -> tuple[nn.Module, TimmConfig]:
    """A model of timm without its classifier, with the weights at `path` or timm's own.

    Raises InputError when timm is not installed, knows no such model, or cannot get the weights.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"encoder timm:{name} needs the package timm: pip install timm") from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 5, 0.4)
        choice = f"efficientnet-lite0, resnet18, inception, pixels and timm's models, e.g. {', '.join(near)}"
        raise InputError(
            f"there is no encoder {name}: there are {choice} (timm {timm.__version__}: timm.list_models())"
        )
    try:
        network = timm.create_model(name, pretrained=path is None, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:  # no network, no weights of that tag
        raise InputError(
            f"encoder timm:{name}: its weights could not be fetched ({one_line(error)}): name a file of them as weights"
        ) from error
    if path is None:
        network.eval().requires_grad_(False)
    else:
        classifier = timm.create_model(name).state_dict().keys() - network.state_dict().keys()
        _load(network, path, f"timm:{name}", frozenset(classifier))
    config = timm.data.resolve_model_data_config(network)
    size = max(config["input_size"][1:])
    with torch.inference_mode():
        dimension = network(torch.zeros(1, 3, *config["input_size"][1:])).shape[1]
    return network, TimmConfig(size, tuple(config["mean"]), tuple(config["std"]), dimension)
