"""The rule for broken samples on planted sets of digits and of images like CIFAR's, and on real images."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from planted_images import blank, blended, colour_fields, digits, mean_image, noised

from stages.images.sharpness import roughness, total_variation
from stages.memorization.blends import hull_distance
from stages.memorization.quality import FAULTS, Looks, QualityRule, broken, faults
from stages.search.nearest import nearest

RULE = QualityRule(quantile=0.01, share=0.25)
COUNT = 200


def small_digits() -> np.ndarray:
    """Digits of 14 × 14 pixels, where every stroke is an edge."""
    return digits()[:2400].reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)).round().astype(np.uint8)


@functools.cache
def split(make: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, held-out and further images."""
    return make()[:1000], make()[1000:1700], make()[1700:2400]


def look(images: np.ndarray, train: np.ndarray) -> tuple[Looks, np.ndarray]:
    """The measures, and which images r₁/r₂ < 0.7 calls copies."""
    rows, reference = images.reshape(len(images), -1), train.reshape(len(train), -1)
    index, squared = nearest(rows, reference, 8)
    first, second = np.sqrt(squared[:, :2].T)
    hull = hull_distance(rows, reference, index).distance
    distance = first / np.sqrt(rows.shape[1]) / 255
    looks = Looks(index[:, 0], distance, hull, total_variation(images), roughness(images))
    return looks, first < 0.7 * second


def verdict(images: np.ndarray, make: Callable[[], np.ndarray]) -> dict[str, str]:
    samples, copied = look(images, split(make)[0])
    return broken(samples, copied, _held_out_looks(make), RULE)


@functools.cache
def _held_out_looks(make: Callable[[], np.ndarray]) -> Looks:
    train, held_out, _ = split(make)
    return look(held_out, train)[0]


ALL = pytest.mark.parametrize("make", [digits, small_digits, colour_fields])


@ALL
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_blank_images_are_broken(make, grey):
    found = verdict(blank(split(make)[2][:COUNT], grey), make)
    assert found["blank"] == (
        "100 % of the samples are blank or blurred: adjacent pixels differ less than in 99 % of held-out images"
    )


@ALL
@pytest.mark.parametrize("what", ["held-out", "training", "mean", "black", "grey"])
def test_noise_is_broken(make, what):
    """Noise of 0.15 on further real images, on copies, on the mean image, on black and on grey."""
    train, _, further = split(make)
    under = {
        "held-out": further[:COUNT],
        "training": train[:COUNT],
        "mean": mean_image(train, COUNT),
        "black": blank(further[:COUNT]),
        "grey": blank(further[:COUNT], 128),
    }[what]
    assert verdict(noised(under), make)["noisy"].startswith(("100 %", "9"))


@ALL
def test_the_mean_image_is_broken(make):
    found = verdict(mean_image(split(make)[0], COUNT), make)
    assert "blank or blurred" in found["blank"]
    assert found["collapsed"].startswith("100 % of the samples are collapsed")


def test_the_mean_of_few_images_is_broken():
    """The mean of 50 digits is about as sharp as the faintest digit."""
    train, held_out = small_digits()[:50], small_digits()[1000:1700]
    samples, copied = look(mean_image(train, COUNT), train)
    assert "collapsed" in broken(samples, copied, look(held_out, train)[0], RULE)


@ALL
def test_a_collapsed_set_is_broken(make):
    """Half of the samples are one and the same real image."""
    further = split(make)[2]
    images = np.concatenate([further[:100], np.repeat(further[100:101], 100, axis=0)])
    found = verdict(images, make)
    assert list(found) == ["collapsed"]
    assert found["collapsed"].startswith("5")


@ALL
@pytest.mark.parametrize("parts", [2, 8])
def test_blends_are_broken(make, parts):
    found = verdict(blended(split(make)[0], COUNT, parts), make)
    assert "yet no copies" in found["blend"]


@ALL
def test_held_out_images_are_sound(make):
    assert verdict(split(make)[1], make) == {}
    assert verdict(split(make)[2], make) == {}


@ALL
def test_copies_are_sound(make):
    """They are copies, which is another finding: the rate means what it says."""
    assert verdict(split(make)[0][:COUNT], make) == {}


@ALL
def test_a_few_bad_samples_do_not_break_a_set(make):
    further = split(make)[2]
    few = np.concatenate([further[:180], blank(further[:20])])
    many = np.concatenate([further[:140], blank(further[:60])])
    assert verdict(few, make) == {}
    assert "blank" in verdict(many, make)
    assert verdict(many, make)["blank"].startswith("3")


def anything(count: int, measures: int, seed: int) -> Looks:
    """Independent measures between 1 and 2."""
    rng = np.random.default_rng(seed)
    return Looks(rng.integers(0, 100, count), *(1 + rng.random(count) for _ in range(measures)))


def test_each_limit_cuts_q_of_the_held_out_images():
    held_out, none = anything(1000, 4, 0), np.zeros(1000, bool)
    shares = {name: beyond.mean() for name, beyond in faults(held_out, none, held_out, 0.01).items()}
    assert shares == dict.fromkeys(FAULTS, 0.01)


def test_far_images_are_broken():
    held_out, none = anything(500, 4, 1), np.zeros(500, bool)
    assert list(broken(dataclasses.replace(held_out, distance=2 + held_out.distance), none, held_out, RULE)) == ["far"]


def test_copies_are_no_blends():
    held_out = anything(500, 4, 2)
    inside = dataclasses.replace(held_out, hull=np.zeros(500))
    assert list(broken(inside, np.zeros(500, bool), held_out, RULE)) == ["blend"]
    assert broken(inside, np.ones(500, bool), held_out, RULE) == {}
