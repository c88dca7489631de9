"""Splits below one place (train/ and test/, train-*.parquet and test-*.parquet): a source takes one of them.

Their images were counted together otherwise: the test images as training images.
"""

import re
from pathlib import PurePosixPath

from stages.errors import InputError

WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
    "valid": "validation", "validation": "validation", "dev": "validation",
}  # fmt: skip
ALL = "all"


def split_of(name: str) -> str:
    """Return the split that a relative path names, or "": by a word of a folder or the first word of the file.

    Words are separated by "-", "_", "." or spaces: DIV2K_train_HR, train-00000-of-00002.parquet.
    """
    *folders, file = PurePosixPath(name).parts
    words = [word for folder in folders for word in _words(folder)] + _words(file)[:1]
    return next((WORDS[word] for word in words if word in WORDS), "")


def _words(name: str) -> list[str]:
    return re.split(r"[-_. ]+", name.lower())


def of_one_split(source: str, names: list[str], wanted: str) -> list[int]:
    """Return the places of the names of the wanted split; all of them where there are no several splits.

    source: the specification, for messages. wanted: what ?split= names, "all" for every split, or "". InputError where
    there are several splits and none is wanted, or where the wanted one is not there.
    """
    found = [split_of(name) for name in names]
    splits = sorted({split for split in found if split})
    if wanted == ALL or (not wanted and len(splits) < 2):
        return list(range(len(names)))
    wanted = WORDS.get(wanted.lower(), wanted)
    if wanted in splits:
        return [place for place, split in enumerate(found) if split == wanted]
    counts = ", ".join(f"{split} ({found.count(split):,} files)" for split in splits) or "no splits"
    remedy = f"name one with ?split={splits[0]}, or ?split={ALL} for all" if splits else "drop ?split="
    raise InputError(f"image source {source} holds {counts}: {remedy}")
