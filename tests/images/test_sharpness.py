"""Total variation of images whose variation is known."""

import numpy as np
import pytest
from planted_images import digits, mean_image, noised

from stages.errors import InputError
from stages.images.sharpness import BLOCK_BYTES, relative_sharpness, roughness, total_variation


def test_one_colour_has_none():
    images = np.full((3, 8, 8, 3), [10, 200, 0], np.uint8)
    assert (total_variation(images) == 0).all()


def test_a_chessboard_has_the_most():
    board = (np.indices((8, 6)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    assert total_variation(board) == pytest.approx([1])


def test_white_noise_has_a_third():
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    assert total_variation(noise).mean() == pytest.approx(1 / 3, rel=0.01)


def test_one_edge_by_hand():
    """3 × 4 pixels have 8 vertical and 9 horizontal pairs, of which the edge crosses 3."""
    image = np.zeros((1, 3, 4, 1), np.uint8)
    image[:, :, 2:] = 51
    assert total_variation(image) == pytest.approx([3 * 0.2 / 17])


def test_rows_and_columns_and_signs_count_alike():
    image = np.random.default_rng(1).integers(0, 256, (1, 9, 9, 2), dtype=np.uint8)
    expected = total_variation(image)
    for other in (image.swapaxes(1, 2), image[:, ::-1], 255 - image):
        assert total_variation(other) == pytest.approx(expected)


def test_blocks_change_nothing():
    side = 256
    count = BLOCK_BYTES // (2 * side * side) + 3
    images = np.random.default_rng(2).integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    assert np.array_equal(
        total_variation(images), np.concatenate([total_variation(images[i : i + 1]) for i in range(count)])
    )


def test_blurred_images_have_less_than_held_out_ones_and_noisy_ones_more():
    train, held_out = digits()[:500], digits()[500:1000]
    assert relative_sharpness(held_out, held_out) == 1
    assert relative_sharpness(train, held_out) == pytest.approx(1, abs=0.05)
    assert relative_sharpness(mean_image(train, 5), held_out) < 0.5
    assert relative_sharpness(noised(held_out), held_out) > 1.5


def test_roughness_is_that_of_the_pattern_whatever_its_contrast():
    """E|a − b| of Gaussians is 2/√π deviations; a chessboard varies by two deviations from pixel to pixel."""
    noise = 128 + 30 * np.random.default_rng(3).normal(size=(20, 64, 64, 3))
    strong, weak = (np.clip(factor * (noise - 128) + 128, 0, 255).round().astype(np.uint8) for factor in (1, 0.3))
    for images in (strong, weak):
        assert roughness(images).mean() == pytest.approx(2 / np.sqrt(np.pi), rel=0.02)
    board = (np.indices((8, 8)).sum(0) % 2 * 100 + 20).astype(np.uint8)[None, :, :, None]
    assert roughness(board) == pytest.approx([2])
    assert roughness(np.full((2, 4, 4, 3), [10, 200, 0], np.uint8)).tolist() == [0, 0]


def test_what_cannot_be_compared_is_an_error():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(InputError, match="no adjacent pixels"):
        total_variation(images[:, :1, :1])
    with pytest.raises(InputError, match="neither may be 0"):
        relative_sharpness(images[:0], images)
    with pytest.raises(InputError, match="one colour"):
        relative_sharpness(images, images)
