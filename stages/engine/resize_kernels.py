"""Compiled bicubic resizing, byte for byte what Pillow's `resize` with Resampling.BICUBIC makes of 8-bit images.

Pillow resizes square images along the rows, rounds to bytes, and then along the columns, with weights in fixed point.
Where an image is made smaller the filter is as much wider. For one small image Pillow takes several times as long.
"""

import math

import numba
import numpy as np

from stages.engine.row_kernels import squared_distance

BITS = 22  # of a weight after the point
SUPPORT = 2.0  # of the filter, to either side


@numba.njit(nogil=True, cache=True, boundscheck=False)
def bicubic(x):
    """The filter of Keys 1981 with a = −1/2."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weights(size, first, last, count):
    """Return the first input of each of `count` outputs, int64 (count,), and the weights from it on, int32 (count, K).

    size: inputs, of which [first, last), in fractions, becomes the outputs; a weight of 1 is 2^BITS.
    """
    first, last = np.float32(first), np.float32(last)  # as Pillow keeps them
    scale = np.float64(last - first) / count
    wide = max(scale, 1.0)
    support = SUPPORT * wide
    exact, starts = np.zeros(2 * math.ceil(support) + 1), np.zeros(count, np.int64)
    found = np.zeros((count, exact.shape[0]), np.int32)
    for i in range(count):
        centre = first + (i + 0.5) * scale
        start, stop = max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))
        total = 0.0
        for k in range(stop - start):
            exact[k] = bicubic((k + start - centre + 0.5) * (1 / wide))
            total += exact[k]
        for k in range(stop - start):
            value = exact[k] / total * (1 << BITS)
            found[i, k] = np.int32(value - 0.5 if value < 0 else value + 0.5)
        starts[i] = start
    return starts, found


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weigh(lines, first, factors, sums, made):
    """made[i] = the sum of the lines first, first + 1, … with `factors`, rounded to bytes; sums: int32, room."""
    sums[:] = np.int32(1 << (BITS - 1))
    for k in range(factors.shape[0]):
        factor = factors[k]
        if factor:
            line = lines[first + k]
            for i in range(sums.shape[0]):
                sums[i] = np.int32(sums[i] + np.int32(factor * np.int32(line[i])))
    for i in range(sums.shape[0]):
        made[i] = np.uint8(min(max(sums[i] >> BITS, 0), 255))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weighed(image, channels, across, down, made):
    """Resize one image, uint8 (H, W · C), into `made`, uint8 (h, w · C). across, down: `weights` of both directions."""
    height, width, line = image.shape[0], image.shape[1] // channels, made.shape[1]
    columns, narrow = np.empty((width, channels * height), np.uint8), np.empty(channels * height, np.uint8)
    rows, sums = np.empty((height, line), np.uint8), np.empty(max(channels * height, line), np.int32)
    for y in range(height):  # long lines in either direction: the compiler makes vectors of them
        for x in range(width):
            for c in range(channels):
                columns[x, c * height + y] = image[y, x * channels + c]
    starts, factors = across
    for i in range(starts.shape[0]):
        weigh(columns, starts[i], factors[i], sums[: channels * height], narrow)
        for y in range(height):
            for c in range(channels):
                rows[y, i * channels + c] = narrow[c * height + y]
    starts, factors = down
    for j in range(made.shape[0]):
        weigh(rows, starts[j], factors[j], sums[:line], made[j])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def resize_all(images, made):
    """Resize square images, uint8 (N, H, H, C), into `made`, uint8 (N, h, h, C)."""
    size, side, channels = images.shape[1], made.shape[1], images.shape[3]
    both = weights(size, 0, size, side)
    for n in range(images.shape[0]):
        image, small = images[n].reshape(size, size * channels), made[n].reshape(side, side * channels)
        weighed(image, channels, both, both, small)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def box_difference(image, whole, box, channels, made):
    """Σ (a − b)² of an image a and the box of `whole`, moved inside it, enlarged to the image's size: int64.

    image, whole: uint8 (H, W · C), square; box: (y, x) of the centre and the side, in pixels; made: as image, room.
    """
    size = whole.shape[0]
    side = min(box[2], np.float64(size))
    top, left = min(max(0.0, box[0] - side / 2), size - side), min(max(0.0, box[1] - side / 2), size - side)
    across, down = weights(size, left, left + side, image.shape[0]), weights(size, top, top + side, image.shape[0])
    weighed(whole, channels, across, down, made)
    total = np.int64(0)
    for y in range(image.shape[0]):
        total += squared_distance(image[y], made[y])
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def best_boxes(images, wholes, boxes, directions, first_step, finest, found):
    """found[n] = the least `box_difference` of image n from the boxes of whole n around boxes[n].

    A pattern search: along one of the directions, float64 (D, 3), after the other a step while that helps; then half
    the step, down to `finest`. images, wholes: uint8 (N, H, H, C); boxes: float64 (N, 3); found: int64 (N,).
    """
    size, channels = images.shape[1], images.shape[3]
    made, near = np.empty((size, size * channels), np.uint8), np.empty(3)
    for n in range(images.shape[0]):
        image, whole = images[n].reshape(size, size * channels), wholes[n].reshape(size, size * channels)
        box = boxes[n].copy()
        best, step = box_difference(image, whole, box, channels, made), first_step
        while step >= finest:
            before = best
            for d in range(directions.shape[0]):
                near[:] = box + step * directions[d]
                distance = box_difference(image, whole, near, channels, made)
                if distance < best:
                    best = distance
                    box[:] = near
            step = step if best < before else step / 2
        found[n] = best
