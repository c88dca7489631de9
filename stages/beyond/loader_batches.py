"""Loader batches: what a softmax that is normalised inside each batch does to copies (METHODS §8b).

Code that streams the training set through a loader and normalises the posterior's weights in every batch averages
posterior means of parts of the set, which is not the posterior mean. The batch's size then smooths, beside whatever
else the method does: here beside nothing, and beside PCA-locality (arXiv 2509.09672), whose released code does it.
"""

import itertools
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from stages.beyond.measures import shares
from stages.beyond.question import Question, by_seed, percent, share_difference, summary, words
from stages.diffusion.parameters import SamplerParams, Variant
from stages.memorization.seeds import over_seeds
from stages.theory.claims import Claim, Findings, Statement, Table

PLAIN, MASKED = "the whole image", "pixels that a linear denoiser uses"
LEAST = 1e-3  # fall in copies that a share is of, at least
SOURCE = "METHODS §8b [ours]; released code of arXiv 2509.09672"


class LoaderBatches(Question):
    """The error and the copies of both posterior means by the batch over which their softmax is normalised."""

    TITLE: ClassVar[str] = "Loader batches: a hidden parameter that smooths"
    QUESTION: ClassVar[str] = (
        "Does a softmax that is normalised inside loader batches, and averaged over them, keep samples off the "
        "training images by itself? If not, copies would be as many at every size of the batches as in one of all."
    )

    size: int = Field(ge=4, description="training images")
    batches: list[PositiveInt] = Field(min_length=2, description="images per batch, rising, each below `size`")
    mask_threshold: float = Field(gt=0, le=1, description="of form pca-locality")
    levels: list[float] = Field(min_length=2, description="noise levels of the errors, rising")
    points: int = Field(ge=10, description="held-out images that are noised at every level")
    sampler: SamplerParams

    def form(self, softmax: str, batch: int | None) -> Variant:
        """A form by what its softmax looks at and the images that share it; None: its exact form, of no batches."""
        if softmax == PLAIN:
            keys = {"form": "conditioning"} if batch is None else {"form": "loader-batches", "loader_batch": batch}
        else:
            keys = {"form": "pca-locality", "mask_threshold": self.mask_threshold, "loader_batch": batch}
        return Variant(score="closed-form", sampler=self.sampler, **keys)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per form of the piece's seed, and one per form and level."""
        from stages.beyond import points, small_models

        rows, errors, sizes = [], [], (*self.batches, self.size)
        for own, softmax in itertools.product(self.seeds, (PLAIN, MASKED)):
            train, held_out = self.drawn(images, own, self.size)
            noised = {sigma: points.noised(held_out[: self.points], sigma, own) for sigma in self.levels}
            exact = {sigma: self._denoised(softmax, None, train, x, sigma) for sigma, x in noised.items()}
            for batch in sizes:
                about = {"softmax": softmax, "batch": batch, "seed": own}
                drawn = small_models.samples(self.form(softmax, batch), self.noise, train, self.samples, own)
                rows.append(about | shares(drawn, train, held_out))
                for sigma, x in noised.items():
                    off = self._denoised(softmax, batch, train, x, sigma) - exact[sigma]
                    errors.append(about | {"sigma": sigma, "error": float(np.sqrt(np.square(off).mean()))})
        return Findings([], {"loader_batches": rows, "loader_batches_error": errors})

    def _denoised(self, softmax: str, batch: int | None, train: np.ndarray, x: Any, sigma: float) -> np.ndarray:
        """The posterior mean at noised images x, a tensor."""
        from stages.beyond import points

        return points.denoised(self.form(softmax, batch), self.noise, train, x, sigma)

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        rows, errors = tables["loader_batches"], tables["loader_batches_error"]
        claims = [claim(errors, name) for name in (PLAIN, MASKED) for claim in (self._one_batch, self._error)]
        return [*claims, self._copies(rows, PLAIN), self._copies(rows, MASKED), self._share(rows)]

    def _one_batch(self, errors: Table, name: str) -> Claim:
        own = [row["error"] for row in errors if (row["softmax"], row["batch"]) == (name, self.size)]
        return Statement(
            f"The mean over one batch of all images is the posterior mean (softmax over {name})",
            "largest rms difference of the pixels", SOURCE, f"{len(self.levels)} levels, {len(self.seeds)} seeds",
        ).equals(max(own), 0.0, 1e-6, "float32 scores")  # fmt: skip

    def _error(self, errors: Table, name: str) -> Claim:
        low, most = self.levels[0], self.batches[-1]
        each = {b: summary(errors, "error", softmax=name, batch=b, sigma=low) for b in self.batches}
        return Statement(
            f"The mean over batches is not the posterior mean, however large they are (softmax over {name})",
            f"rms difference of the pixels, batches of {most} of {self.size}, σ = {low:g}", SOURCE,
            f"noised held-out images; {', '.join(f'{words(own, digits=3)} at {b}' for b, own in each.items())}",
        ).above(each[most], 0.0, "0, as for one batch of all images")  # fmt: skip

    def _copies(self, rows: Table, name: str) -> Claim:
        sizes = (*self.batches, self.size)
        each = {batch: percent(rows, "copies", softmax=name, batch=batch) for batch in sizes}
        listing = ", ".join(f"{own} % at {batch}" for batch, own in each.items())
        control = percent(rows, "control", softmax=name, batch=self.size)
        exact, batched = ({"softmax": name, "batch": batch} for batch in (self.size, self.batches[-1]))
        blends = percent(rows, "blends", **batched)
        return Statement(
            f"Batches alone remove copies (softmax over {name})",
            f"share of copies, one batch of {self.size} − batches of {self.batches[-1]}", SOURCE,
            f"{listing}; held-out images {control} %; blends in batches of {self.batches[-1]}: {blends} %",
        ).above(share_difference(rows, "copies", exact, batched), 0.0, "0")  # fmt: skip

    def _share(self, rows: Table) -> Claim:
        """Of the fall in copies from the empirical score to PCA-locality in batches, the share of the batches."""
        ends = ((PLAIN, self.size), (MASKED, self.size), (MASKED, self.batches[-1]))
        whole, masked, both = (by_seed(rows, "copies", softmax=name, batch=batch) for name, batch in ends)
        found = over_seeds([(m - b) / max(w - b, LEAST) for w, m, b in zip(whole, masked, both)])
        copies = ", ".join(percent(rows, "copies", softmax=name, batch=batch) for name, batch in ends)
        return Statement(
            "Part of what keeps PCA-locality off the training images is the loader's batches",
            f"(copies of the exact form − in batches of {self.batches[-1]})/(copies of the empirical score − the same)",
            SOURCE, f"threshold {self.mask_threshold:g} of the masks; copies of the three {copies} %",
        ).above(found, 0.0, "0; were the masks to do nothing, 1")  # fmt: skip
