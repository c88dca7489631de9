"""Weights files of the encoders, with random or stand-in networks."""

import pytest
import torch


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory):
    """ResNet-18 with random weights, batch-norm statistics included, saved as torchvision saves it."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


class Layers(torch.nn.Module):
    """Something that maps (B, 3, 299, 299) to (B, 2048, 1, 1), and that shows what it was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2048].view(x.shape[0], 2048, 1, 1)


class StandIn(torch.nn.Module):
    """The calling convention of clean-fid's TorchScript Inception."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "any-name.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path
