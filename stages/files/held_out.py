"""Which held-out images choose a network, and which are reported (sample.checkpoint: best_fid).

Held-out images lie in a seeded order (stage ingest), so that the last ones are a random part. A network that was chosen
by them is not measured by them: stage fid leaves them out of its references and its floor.
"""

from stages.errors import InputError


def for_the_choice(count: int, wanted: int) -> slice:
    """Return the rows of `count` held-out images that choose: the last `wanted`. Too few raise InputError."""
    if wanted > count // 2:
        raise InputError(
            f"sample.choice_images: {wanted} held-out images were asked for, and there are {count}, half of which are "
            "reported: lower it, or raise ingest.holdout"
        )
    return slice(count - wanted, count)


def reported(count: int, checkpoint: str, wanted: int) -> int:
    """Return how many of `count` held-out images are reported: the first ones. wanted: sample.choice_images."""
    return for_the_choice(count, wanted).start if checkpoint == "best_fid" else count
