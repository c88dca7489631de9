"""hf:PATH: what `save_to_disk` of Hugging Face's datasets library wrote, read without that library."""

from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.images.sources.base import existing, regular_file
from stages.images.sources.image_table import StreamSource

SPLITS, STATE = "dataset_dict.json", "state.json"


def open_saved(path: str, image: str = "", label: str = "", split: str = "") -> StreamSource:
    """The images of a saved Dataset, or of one split of a saved DatasetDict, from the files that its state names.

    Files beside those, of an earlier version or a cache, are not read.
    """
    folder = _split_folder(path, existing(path), split)
    names = [entry["filename"] for entry in _entry(folder / STATE, "_data_files")]
    if not names or any(Path(name).name != name for name in names):
        raise InputError(
            f"image source hf:{path}: {folder / STATE} names no files of its folder: save the data set again"
        )
    return StreamSource([str(regular_file(folder / name)) for name in names], image, label)


def _split_folder(path: str, root: Path, split: str) -> Path:
    """The folder that holds state.json: `root`, or its only or named split."""
    if (root / STATE).is_file():
        if split:
            raise InputError(f"image source hf:{path} is one data set without splits: drop ?split=")
        return root
    if not (root / SPLITS).is_file():
        raise InputError(f"image source hf:{path} holds neither {STATE} nor {SPLITS}: name what save_to_disk wrote")
    splits = _entry(root / SPLITS, "splits")
    name = splits[0] if len(splits) == 1 and not split else split
    if name not in splits or Path(name).name != name:
        raise InputError(f"image source hf:{path} has the splits {', '.join(splits)}: name one with ?split=")
    return root / name


def _entry(path: Path, key: str) -> Any:
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get(key), list):
        raise InputError(f"image source: {path} has no list {key!r}: save the data set again")
    return found[key]
