"""Weights files: found, downloaded, checked, refused."""

import io
import urllib.error
import urllib.request

import pytest
import torch
from encoder_inputs import OUTSIDE, parameters
from pydantic import ValidationError

from stages.errors import InputError
from stages.features import weights as weights_module
from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams, pinned
from stages.files.artifacts import sha256_file


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "file"), [("resnet18", "resnet18-f37072fd.pth"), ("inception_v3", "inception-2015-12-05.pt")]
)
def test_without_network_the_message_names_the_path(offline, name, file):
    with pytest.raises(InputError) as caught:
        load_encoder(parameters(name), "cpu")
    message = str(caught.value)
    assert str(offline / file) in message
    assert weights_module.DOWNLOADS[name][0] in message
    assert "\n" not in message


def test_a_file_put_there_is_used(offline, inception_file):
    offline.mkdir(parents=True)
    (offline / "inception-2015-12-05.pt").write_bytes(inception_file.read_bytes())
    digest = sha256_file(inception_file)
    assert load_encoder(parameters("inception_v3", sha256=digest), "cpu").dimension == 2048


class Response(io.BytesIO):
    def __init__(self, content, length=None):
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if length is None else length)}


def test_a_download_is_kept_only_whole_and_right(offline, monkeypatch, inception_file):
    content = inception_file.read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content, len(content) + 1))
    named = parameters("inception_v3", sha256=sha256_file(inception_file))
    with pytest.raises(InputError, match="bytes arrived"):
        weights_module.weights_file(named)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content))
    with pytest.raises(InputError, match=r"expected f37072fd\.\.\."):
        weights_module.weights_file(parameters("resnet18"))
    with pytest.raises(InputError, match="expected f58cb9b6"):
        weights_module.weights_file(parameters("inception_v3"))
    assert list(offline.iterdir()) == []
    assert weights_module.weights_file(named).read_bytes() == content


def test_another_sha256_is_refused_before_loading(resnet_file):
    right = sha256_file(resnet_file)
    assert load_encoder(parameters("resnet18", weights=str(resnet_file), sha256=right), "cpu")
    with pytest.raises(InputError, match=f"has sha256 {right}, expected {'0' * 64}"):
        load_encoder(parameters("resnet18", weights=str(resnet_file), sha256="0" * 64), "cpu")


def test_pinned_fills_in_the_sha256_that_will_be_checked(resnet_file):
    found = pinned(parameters("resnet18", weights=str(resnet_file)))
    assert found.sha256 == sha256_file(resnet_file)
    assert pinned(found) == found
    assert pinned(parameters("pixels")).sha256 is None


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_no_weights_are_refused(resnet_file, tmp_path, capsys):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "cut.pth").write_bytes(resnet_file.read_bytes()[:1000])
    torch.save({"a": Code()}, tmp_path / "code.pth")
    for name in ("text.pth", "text.safetensors", "cut.pth", "code.pth", "absent.pth"):
        with pytest.raises(InputError, match=name):
            load_encoder(parameters("resnet18", weights=str(tmp_path / name)), "cpu")
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"text\.pt is not InceptionV3"):
        digest = sha256_file(tmp_path / "text.pt")
        load_encoder(parameters("inception_v3", weights=str(tmp_path / "text.pt"), sha256=digest), "cpu")
    with pytest.raises(InputError, match="does not hold the weights of efficientnet-lite0"):
        load_encoder(parameters("efficientnet-lite0", weights=str(resnet_file)), "cpu")


class Program(torch.nn.Module):
    """TorchScript that shows when it runs."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        print("this must not run")
        return x


def test_a_program_is_not_run_unless_its_sha256_is_named(offline, tmp_path, capfd):
    """TorchScript given as weights, by a person or in torch's folder of downloads."""
    path = tmp_path / "any.pt"
    torch.jit.script(Program()).save(str(path))
    offline.mkdir(parents=True)
    (offline / "inception-2015-12-05.pt").write_bytes(path.read_bytes())
    for weights in (str(path), None):
        with pytest.raises(InputError, match="expected f58cb9b6.*: fetch the right file, or correct embed.encoder.sha"):
            load_encoder(parameters("inception_v3", weights=weights), "cpu")
    for name in ("resnet18", "efficientnet-lite0"):
        with pytest.raises(InputError, match=r"any\.pt"):
            load_encoder(parameters(name, weights=str(path)), "cpu")
        with pytest.raises(InputError, match=r"any\.pt"):
            load_encoder(parameters(name, weights=str(path), sha256=sha256_file(path)), "cpu")
    assert "must not run" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"fc.weight": "text"}, {1: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth"):
        load_encoder(parameters("resnet18", weights=str(tmp_path / "odd.pth")), "cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "vgg"},
        {"name": "pixels", "resize": 64},
        {"name": "inception_v3", "resize": 224},
        {"name": "resnet18", "resize": 0},
        {"name": "resnet18", "sha256": "abc"},
    ],
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        EncoderParams(**OUTSIDE | wrong)
