"""Class conditioning: how the class enters, that nothing else changes, and samples of every class with their labels."""

import numpy as np
import pytest
import torch
from diffusion_project import small_params, write_params
from small_training import LEVELS, NETWORK, OPTIMIZATION
from torch import nn

from stages.diffusion.classes import class_list, most_frequent, places, sample_labels
from stages.diffusion.model import Model, load_model, make_model
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import ScoreSpec, Variant
from stages.diffusion.training import add_gradient, build_training
from stages.diffusion.variants import network_score
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import image_table, read_images, write_images
from stages.files.paths import images_of, run_samples_of, samples_of, score_of, weights_of
from stages.protocol import run_plain

SDE = {"name": "reverse-sde", "levels": 6}
CPU = torch.device("cpu")


def network(conditioned, classes, seed=0):
    torch.manual_seed(seed)
    made = NCSNpp(NETWORK, 1, 8, conditioned, 0.01, 5.0, classes).eval()
    with torch.no_grad():  # its last layers begin at nearly zero
        for parameter in made.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return made


def inputs(conditioned, count=4):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.full((count,), 0.7) if conditioned else None


def test_a_network_without_classes_has_the_same_weights_as_before():
    """And classes add their vectors alone to a noise-conditioned network, drawn after all that was there."""
    for conditioned in (True, False):
        torch.manual_seed(3)
        plain = NCSNpp(NETWORK, 1, 8, conditioned, 0.01, 5.0).state_dict()
        torch.manual_seed(3)
        zero = NCSNpp(NETWORK, 1, 8, conditioned, 0.01, 5.0, classes=0).state_dict()
        assert plain.keys() == zero.keys()
        assert all(torch.equal(plain[name], zero[name]) for name in plain)
    torch.manual_seed(3)
    plain = NCSNpp(NETWORK, 1, 8, True, 0.01, 5.0).state_dict()
    torch.manual_seed(3)
    told = NCSNpp(NETWORK, 1, 8, True, 0.01, 5.0, classes=3).state_dict()
    assert told.keys() - plain.keys() == {"classes.weight"}
    assert all(torch.equal(plain[name], told[name]) for name in plain)


def test_the_class_is_added_to_the_embedding_of_the_level():
    told, plain = network(True, 3), network(True, 0)
    plain.load_state_dict({name: tensor for name, tensor in told.state_dict().items() if name != "classes.weight"})
    x, sigma = inputs(True)
    label = torch.tensor([0, 2, 1, 2])
    level = plain.embed(sigma)
    plain.embed.forward = lambda sigma: level + told.classes.weight[label]
    assert torch.equal(told(x, sigma, label), plain(x, sigma))


def test_a_noise_blind_network_reads_the_class_and_no_level():
    told = network(False, 3)
    x, _ = inputs(False)
    x = x[:1].repeat(3, 1, 1, 1)
    out = told(x, None, torch.arange(3))
    assert all((out[a] - out[b]).abs().max() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))
    with pytest.raises(ValueError, match="noise-blind one takes None"):
        told(x, torch.ones(3), torch.arange(3))


@pytest.mark.parametrize(("classes", "label"), [(3, None), (0, torch.zeros(4, dtype=torch.int64))])
def test_a_label_is_given_to_class_conditional_networks_and_to_these_alone(classes, label):
    x, sigma = inputs(True)
    with pytest.raises(ValueError, match="needs labels, any other takes None"):
        network(True, classes)(x, sigma, label)


@pytest.mark.parametrize("conditioned", [True, False])
def test_training_tells_the_network_the_class_of_every_image(conditioned):
    """Images are as bright as their class is high, so the network's input says which label belongs to it."""
    labels = np.arange(12) % 3
    images = np.repeat(90 * labels.astype(np.uint8), 64).reshape(12, 8, 8, 1)
    spec = ScoreSpec(score="network", form="conditioning" if conditioned else "unconditioning", conditioning="class")
    params = OPTIMIZATION.model_copy(update={"microbatch": 3})
    quiet = LEVELS.model_copy(update={"sigma_min": 1e-4, "sigma_max": 1e-3})
    training = build_training(spec, quiet, NETWORK, params, images, None, CPU, 1, labels=labels)
    seen, forward = [], training.forward

    class Watched(nn.Module):
        def forward(self, x, sigma, label):
            seen.extend(zip((255 * x.mean((1, 2, 3)) / 90).round().long().tolist(), label.tolist()))
            return forward(x, sigma, label)

    training.forward = Watched()
    for step in range(3):
        training.step = step
        add_gradient(training, 0, 3)
        add_gradient(training, 3, 8)
    assert len(seen) == 24
    assert all(brightness == label for brightness, label in seen)
    assert {label for _, label in seen} == {0, 1, 2}
    assert training.network.classes.weight.grad.abs().sum(1).gt(0).all()


def test_one_images_score_does_not_depend_on_its_companions():
    told, (x, sigma) = network(True, 3), inputs(True)
    label = torch.tensor([0, 2, 1, 2])
    whole = network_score(told, True, label=label)(x, sigma)
    one = network_score(told, True, label=label[1:2])(x[1:2], sigma[1:2])
    torch.testing.assert_close(whole[1:2], one)


def test_samples_take_the_classes_in_turn():
    assert sample_labels([3, 7, 8], 7).tolist() == [3, 7, 8, 3, 7, 8, 3]
    assert places(np.array([8, 3, 3]), [3, 7, 8]).tolist() == [2, 0, 0]
    assert class_list(np.array([8, 3, 8]), "key") == [3, 8]
    assert most_frequent(np.array([2, 0, 2, 0, 1])) == 0
    with pytest.raises(InputError, match="label 4 is not one of the classes"):
        places(np.array([3, 4]), [3, 7])


def test_the_actual_level_is_the_distance_to_the_images_of_the_samples_own_class():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    labels = np.arange(20) % 3
    variant = Variant(score="network", form="unconditioning", conditioning="class", sampler=SDE)
    model = make_model(variant, LEVELS, images, network(False, 3), CPU)
    model = Model(**{**vars(model), "labels": labels})
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    indices = torch.tensor([4, 3, 2, 1, 0])
    squared = (x.numpy()[:, 0, None] - images[None, :, :, :, 0] / 255) ** 2
    distance = np.sqrt(squared.mean((2, 3)))
    wanted = [distance[row, labels == index % 3].min() for row, index in enumerate(indices.tolist())]
    np.testing.assert_allclose(model.level(indices)(x).numpy(), wanted, rtol=1e-5)


LABELS = (3, 7)


@pytest.fixture
def told(project):
    """A project of dark images of class 3 and bright ones of class 7, and networks that are told the class."""
    generator = np.random.default_rng(0)
    labels = np.array(LABELS)[np.arange(30) % 2]
    images = np.where(labels == 3, 40, 215)[:, None, None, None] + generator.integers(-20, 20, (30, 8, 8, 1))
    write_images(images_of("train"), image_table(images.astype(np.uint8), labels))
    tree = small_params()
    tree["train"]["optimization"] |= {"steps": 100, "batch": 8, "learning_rate": 0.01, "ema": 0.9, "decay": "cosine"}
    tree["train"]["snapshots"] = [50]
    tree["sample"] |= {"count": 61, "batch": 10, "curve_count": 20}
    tree["sample"]["alignment"] |= {
        "levels": 2,
        "images": 4,
        "expansion_pairs": 4,
        "pairs": 2,
        "paths": 1,
        "points": 3,
        "steps": 2,
    }
    actual = {"name": "actual-noise", "levels": 10, "step": 0.3, "exact_below": 5.0}
    common = {"score": "network", "conditioning": "class"}
    tree["variants"] = {
        "told": {**common, "form": "conditioning", "sampler": {"name": "reverse-sde", "levels": 10}},
        "told-blind": {**common, "form": "unconditioning", "sampler": actual},
    }
    write_params(tree)
    return tree


@pytest.mark.parametrize("name", ["told", "told-blind"])
def test_samples_are_of_the_class_that_their_label_says(told, name):
    run_plain("train", name)
    run_plain("sample", name)
    score = read_json(score_of(name))
    assert score["classes"] == list(LABELS)
    table, runs = read_images(samples_of(name)), read_images(run_samples_of(name))
    assert table.labels.tolist() == sample_labels(list(LABELS), 61).tolist()
    assert runs.labels.tolist() == 2 * table.labels[:20].tolist()
    bright = table.images.mean((1, 2, 3))
    dark, light = bright[table.labels == 3], bright[table.labels == 7]
    assert light.mean() - dark.mean() > 4 * np.hypot(light.std() / len(light) ** 0.5, dark.std() / len(dark) ** 0.5)
    assert read_json(f"data/sample/{name}/alignment.json")["class"] == 3


def test_shards_do_not_change_the_samples_of_a_class(told):
    told["train"]["optimization"]["steps"] = 5
    told["train"]["snapshots"] = []
    told["sample"]["count"] = 23
    write_params(told)
    run_plain("train", "told")
    run_plain("sample", "told")
    own = read_images(samples_of("told"))
    told["sample"] |= {"shards": 1}
    write_params(told)
    run_plain("sample", "told")
    other = read_images(samples_of("told"))
    assert np.array_equal(own.images, other.images)
    assert np.array_equal(own.labels, other.labels)


def test_images_without_labels_are_named_with_the_key(told):
    write_images(images_of("train"), image_table(read_images(images_of("train")).images[:30].copy()))
    with pytest.raises(
        InputError, match=r"variants\.told\.conditioning: 30 of 30 training images have no label: remove"
    ):
        run_plain("train", "told")


def test_weights_of_other_classes_are_refused(told):
    told["train"]["optimization"]["steps"] = 1
    told["train"]["snapshots"] = []
    write_params(told)
    run_plain("train", "told")
    score, table = read_json(score_of("told")), read_images(images_of("train"))
    with pytest.raises(InputError, match="holds the weights of another score"):
        load_model({**score, "classes": [3, 7, 8]}, SDE, table.images, str(weights_of("told", 42)), "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"conditioning": "label"}, "conditioning"), ({"score": "closed-form"}, "class belongs to networks")],
)
def test_wrong_keys_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        ScoreSpec(**{"score": "network", "form": "conditioning", "conditioning": "class", **change})
