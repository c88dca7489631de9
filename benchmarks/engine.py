"""What each part of the engine gains over the plain library call that computes the same numbers.

    python -m benchmarks.engine [--rounds 5] [--only NAME ...]

Synthetic images of the size of CIFAR-10's. Both sides take one thread and run in turns; the ratio is of the medians of
processor seconds, and both results are compared before they are timed. The whole search and the whole closed-form score
have benchmarks of their own (`benchmarks.search`, `benchmarks.closed_form`). Prints a Markdown table and a JSON line.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numba
import numpy as np
import torch
from PIL import Image

from benchmarks.turns import in_turns
from stages.engine import alignment_kernels, nuisance_kernels, products, resize_kernels, score_kernels, search_kernels
from stages.engine.fixed_rounding import with_fixed_rounding
from stages.engine.projection import coordinates, fit_projection
from stages.engine.search_kernels import score_function
from stages.engine.simd import processor_features
from stages.engine.sizes import NO_KEY, TILE
from stages.engine.tiled import pack
from stages.search.alignment import best_shift
from stages.search.nearest_short import Prepared, nearest_short

SIDE, CHANNELS = 32, 3
WIDTH = SIDE * SIDE * CHANNELS


class Case(NamedTuple):
    """One part of the engine beside the plain call. ours, plain: () → the result of either."""

    name: str
    plain_words: str
    ours: Callable[[], np.ndarray]
    plain: Callable[[], np.ndarray]
    tolerance: float = 0.0


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Smooth random images, uint8 (count, SIDE, SIDE, CHANNELS): shades of a coarse grid, and noise."""
    coarse = rng.normal(128, 50, (count, 4, 4, CHANNELS)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return np.clip(coarse + rng.normal(0, 12, (count, SIDE, SIDE, CHANNELS)), 0, 255).astype(np.uint8)


def float_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b.T in torch's float32, converted there and back, as a search would call it."""
    return torch.mm(torch.from_numpy(a).float(), torch.from_numpy(b).float().T).to(torch.int32).numpy()


def product_cases(rng: np.random.Generator) -> Iterator[Case]:
    few, many = (products.centred(images(rng, n).reshape(n, WIDTH)) for n in (512, 4_096))
    raw = many.view(np.uint8) ^ np.uint8(128)
    yield Case("products", "torch, float32", lambda: products.products(few, many), lambda: float_product(few, many), 64)
    weights = rng.integers(-128, 128, (64, len(many)), dtype=np.int8)
    yield Case("weighted_sums", "torch, float32", lambda: products.weighted_sums(weights, many),
               lambda: float_product(weights, many.T.copy()), 64)  # fmt: skip
    wide = raw.astype(np.int32) - 128
    yield Case("compiled_norms", "numpy.einsum of int32", lambda: products.compiled_norms(raw),
               lambda: np.einsum("nd,nd->n", wide, wide))  # fmt: skip
    digits, out = few[:4], np.empty((4, len(raw)), np.int32)

    def some_products() -> np.ndarray:
        score_kernels.few_products(raw, digits, out)
        return out

    yield Case("few_products", "torch, float32", some_products, lambda: float_product(digits, many), 64)

    def some_sums() -> np.ndarray:
        sums = np.zeros((4, WIDTH), np.int32)
        score_kernels.few_sums(weights[:4], raw, sums)
        return sums

    turned = many.T.copy()
    yield Case("few_sums", "torch, float32", some_sums, lambda: float_product(weights[:4], turned), 64)
    shorts = [rng.integers(-5000, 5001, (n, 96)).astype(np.int16) for n in (384, 100 * TILE)]
    added = np.zeros(len(shorts[1]), np.int32)
    packed = pack(shorts[1].view(np.int32), added)
    scores = np.zeros((len(shorts[0]), len(packed[0]), 4, TILE // 4), np.int16)
    maxima, score_tiles = np.zeros((len(shorts[0]), TILE // 4 * len(packed[0])), np.int16), scorer()

    def tiles() -> np.ndarray:
        score_tiles(shorts[0].view(np.int32), *packed, scores, maxima, 0)
        return maxima

    def plain_tiles() -> np.ndarray:
        best = float_product(*shorts).reshape(len(shorts[0]), -1, 4).max(2)
        return (best >> 16).astype(np.int16)

    yield Case("score_tiles", "torch, float32, and NumPy's maximum of four", tiles, plain_tiles, 1)


def scorer() -> Callable[..., None]:
    return score_function(processor_features())


def list_cases(rng: np.random.Generator) -> Iterator[Case]:
    queries, reference = (images(rng, n).reshape(n, WIDTH) for n in (256, 4_096))
    inner = products.products(products.centred(queries), products.centred(reference))
    own, norms = (products.compiled_norms(some) for some in (queries, reference))
    rows, count, k = np.arange(len(reference)), len(reference), 50

    def dense() -> np.ndarray:
        keys = np.full((len(queries), k), NO_KEY)
        search_kernels.dense_block(inner, own, norms, rows, count, np.full(len(queries), -1), keys)
        return keys % count

    def short() -> np.ndarray:
        keys = np.full((len(queries), k), NO_KEY)
        alignment_kernels.keep_lowest(inner, norms.astype(np.int32), 0, count, keys)
        return keys % count

    def plain() -> np.ndarray:
        squared = norms - 2 * inner.astype(np.int64)
        some = np.argpartition(squared, k, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(squared, some, 1), axis=1, kind="stable")
        return np.take_along_axis(some, order, 1)

    yield Case("dense_block", "numpy.argpartition", dense, plain)
    yield Case("keep_lowest", "numpy.argpartition", short, plain)
    yield from short_cases(rng)
    projection = fit_projection(reference, 284, 92)

    def plain_coordinates() -> np.ndarray:
        directions = torch.from_numpy(projection.rows[:-1].astype(np.float32))
        raw = torch.mm(torch.from_numpy(reference.astype(np.float32)), directions.T).numpy()
        norms = np.square(reference.astype(np.float32)).sum(1)
        coarse = np.rint(raw * projection.factor.astype(np.float32)).astype(np.int16)
        return norms, coarse

    words, ours = "torch, float32: products, rounded, and lengths", lambda: coordinates(projection, reference)
    yield Case("coordinates", words, ours, plain_coordinates, np.inf)


def short_cases(rng: np.random.Generator) -> Iterator[Case]:
    few, many = (rng.normal(128, 40, (n, 64)).clip(0, 255).astype(np.uint8) for n in (256, 16_384))
    known, k = Prepared.of(many), 8

    def plain() -> np.ndarray:
        left, right = (torch.from_numpy(some).float() for some in (few, many))
        return torch.addmm(right.square().sum(1), left, right.T, alpha=-2).topk(k, largest=False)[1].numpy()

    yield Case("nearest_short", "torch, float32 product and topk", lambda: nearest_short(few, known, k), plain, np.inf)


def image_cases(rng: np.random.Generator) -> Iterator[Case]:
    pictures, queries = images(rng, 2_000), images(rng, 64)
    candidates = np.sort(rng.integers(0, len(pictures), (len(queries), 16)), axis=1)
    steps = range(-3, 4)
    shifts = [(y, x) for y in steps for x in steps]

    def shifted() -> np.ndarray:
        found = best_shift(queries, pictures, candidates, 3)
        return found.squared / found.count

    def plain_shifted() -> np.ndarray:
        best = np.full(len(queries), np.inf)
        own, others = queries.astype(np.float32)[:, None], pictures[candidates].astype(np.float32)
        for y, x in shifts:
            mine = own[:, :, max(0, -y) : SIDE - max(0, y), max(0, -x) : SIDE - max(0, x)]
            theirs = others[:, :, max(0, y) : SIDE - max(0, -y), max(0, x) : SIDE - max(0, -x)]
            best = np.minimum(best, np.square(mine - theirs).mean((2, 3, 4)).min(1))
        return best

    yield Case("best_shift", "NumPy, float32, a shift at a time", shifted, plain_shifted, 0.1)
    yield from resize_cases(pictures)
    edges = np.arange(5) * SIDE // 4

    def tiled() -> np.ndarray:
        found = np.empty(len(queries))
        alignment_kernels.search_tiles(queries, pictures, candidates, edges, edges, found)
        return found

    def plain_tiled() -> np.ndarray:
        squares = np.square(queries.astype(np.float32)[:, None] - pictures[candidates])
        return (
            squares.reshape(len(queries), -1, 4, SIDE // 4, 4, SIDE // 4, CHANNELS).mean((3, 5, 6)).max((2, 3)).min(1)
        )

    yield Case("search_tiles", "NumPy, float32", tiled, plain_tiled, 0.1)
    cells = np.arange(9) * SIDE // 8

    def means() -> np.ndarray:
        found = np.empty((len(pictures), 64 * CHANNELS), np.uint8)
        alignment_kernels.cell_means(pictures, cells, cells, found)
        return found

    def plain_means() -> np.ndarray:
        parts = pictures.reshape(len(pictures), 8, SIDE // 8, 8, SIDE // 8, CHANNELS)
        return np.floor(parts.mean((2, 4), dtype=np.float32) + 0.5).astype(np.uint8).reshape(len(pictures), -1)

    yield Case("cell_means", "NumPy's mean", means, plain_means)


def resize_cases(pictures: np.ndarray) -> Iterator[Case]:
    def resized() -> np.ndarray:
        found = np.empty((len(pictures), 26, 26, CHANNELS), np.uint8)
        resize_kernels.resize_all(pictures, found)
        return found

    def plain_resized() -> np.ndarray:
        made = (Image.fromarray(image).resize((26, 26), Image.Resampling.BICUBIC) for image in pictures)
        return np.stack([np.asarray(image) for image in made])

    yield Case("resize_all", "Pillow, an image at a time", resized, plain_resized)


def colour_cases(rng: np.random.Generator) -> Iterator[Case]:
    cells = 256
    reference = rng.integers(0, 256, (2_000, CHANNELS, cells), dtype=np.uint8)
    rows = rng.integers(0, len(reference), (64, 16))
    queries = reference[rng.integers(0, len(reference), 64)]
    grey, mask = reference.mean(1).astype(np.uint8), np.ones(cells, np.int16)
    centred = queries.mean(1).astype(np.int16)
    centred -= np.rint(centred.mean(1)).astype(np.int16)[:, None]

    def correlated() -> np.ndarray:
        found = np.empty(rows.shape, np.float32)
        nuisance_kernels.correlations(centred, mask, grey, rows, found)
        return found

    def plain_correlated() -> np.ndarray:
        own, other = centred.astype(np.float32), grey[rows].astype(np.float32)
        own, other = own - own.mean(1, keepdims=True), other - other.mean(2, keepdims=True)
        cross = np.einsum("qp,qsp->qs", own, other)
        return cross / np.sqrt(np.square(own).sum(1)[:, None] * np.square(other).sum(2))

    yield Case("correlations", "NumPy, float32", correlated, plain_correlated, 1e-4)

    def explained() -> np.ndarray:
        found = np.empty((*rows.shape, 2))
        views = np.zeros(rows.shape, np.int64)
        nuisance_kernels.residuals(
            queries[None], np.zeros(1, np.int64), mask[None], views, reference, rows, 0.25, found
        )
        return found[..., 0]

    def plain_explained() -> np.ndarray:
        own, other = queries.astype(np.float64), reference[rows].astype(np.float64)
        own, other = own - own.mean(2, keepdims=True), other - other.mean(3, keepdims=True)
        inner = np.einsum("qscp,qsdp->qscd", other, other) + 0.25 * cells * np.eye(CHANNELS)
        right = np.einsum("qscp,qdp->qscd", other, own)
        solved = (right * np.linalg.solve(inner, right)).sum((2, 3))
        return np.maximum(0, np.square(own).sum((1, 2))[:, None] - solved) / (cells * CHANNELS)

    yield Case("residuals", "NumPy, float64, solve", explained, plain_explained, 1e-3)
    own = queries.mean(1).astype(np.uint8)
    boxes = np.array([(y, y + 8, x, x + 8) for y in range(0, 9, 2) for x in range(0, 9, 2)])

    def covered() -> np.ndarray:
        best, views = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.int64)
        nuisance_kernels.covered_correlations(own, boxes, grey, rows, best, views)
        return best

    def plain_covered() -> np.ndarray:
        some = []
        for top, bottom, left, right in boxes:
            shown = np.ones((16, 16), bool)
            shown[top:bottom, left:right] = False
            parts = (values[..., shown.ravel()].astype(np.float32) for values in (own, grey[rows]))
            one, other = (part - part.mean(-1, keepdims=True) for part in parts)
            cross = np.einsum("qp,qsp->qs", one, other)
            some.append(cross / np.sqrt(np.square(one).sum(1)[:, None] * np.square(other).sum(2)))
        return np.max(some, axis=0)

    yield Case("covered_correlations", "NumPy, float32, a box at a time", covered, plain_covered, 1e-4)
    x = rng.uniform(-60, 0, 200_000)

    def exponentials() -> np.ndarray:
        found = x.copy()
        score_kernels.exponentials(found, np.empty(len(x), np.int64))
        return found

    def plain_exponentials() -> np.ndarray:
        found = x.copy()
        _math_exponentials(found)
        return found

    yield Case("exponentials", "math.exp in a compiled loop", exponentials, plain_exponentials, 1e-12)


@numba.njit(nogil=True)
def _math_exponentials(x):
    for j in range(x.shape[0]):
        x[j] = math.exp(x[j])


def layer_cases(rng: np.random.Generator) -> Iterator[Case]:
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    fixed = with_fixed_rounding(torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1)))
    fixed[0].load_state_dict(layer.state_dict())
    for count in (4, 64):
        batch = torch.from_numpy(rng.normal(size=(count, 64, 8, 8)).astype(np.float32))

        def ours(batch: torch.Tensor = batch) -> np.ndarray:
            with torch.no_grad():
                return fixed(batch).numpy()

        def plain(batch: torch.Tensor = batch) -> np.ndarray:
            with torch.no_grad():
                return layer(batch).numpy()

        yield Case(f"fixed_rounding, batch {count}", "torch's layer, whose bits depend on the batch", ours, plain, 1e-4)


def cases() -> Iterator[Case]:
    """All cases; inputs are drawn from one seed."""
    for make in (product_cases, list_cases, image_cases, colour_cases, layer_cases):
        yield from make(np.random.default_rng(0))


def check(case: Case) -> None:
    """Raise AssertionError where the two sides disagree by more than the plain call's rounding."""
    ours, plain = case.ours(), case.plain()
    if np.isfinite(case.tolerance):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=case.tolerance, err_msg=case.name)


def repeated(call: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """The call again and again for about a twentieth of a second, and how often."""
    started = time.process_time()
    call()
    count = 1 + int(0.05 / max(time.process_time() - started, 1e-6))

    def calls() -> None:
        for _ in range(count):
            call()

    return calls, count


def measure(case: Case, rounds: int) -> tuple[float, float]:
    """Median processor seconds of ours and of the plain call, in turns."""
    (ours, times), (plain, plain_times) = repeated(case.ours), repeated(case.plain)
    spent = in_turns({"ours": ours, "plain": plain}, rounds)
    return spent["ours"] / times, spent["plain"] / plain_times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of parts")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    print("| part | plain call | plain ms | ours ms | factor |\n|---|---|---|---|---|")
    found = {}
    for case in cases():
        if options.only and case.name not in options.only:
            continue
        check(case)
        ours, plain = measure(case, options.rounds)
        found[case.name] = plain / ours
        print(
            f"| {case.name} | {case.plain_words} | {1e3 * plain:.2f} | {1e3 * ours:.2f} | {plain / ours:.2g} |",
            flush=True,
        )
    print(json.dumps({"factors": found}))


if __name__ == "__main__":
    main()
