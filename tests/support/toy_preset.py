"""A project with a preset at toy scale, and stand-ins for its images: smooth random ones with ten labels."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline import preset
from stages.protocol import load_tree

ROOT = Path(__file__).parents[2]
COPIED = ("stages", "pipeline", "scoresmooth", "params.yaml", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore")


def stand_in(path: Path, seed: int, count: int, channels: int) -> None:
    """Write `count` images of 32 x 32 pixels and their labels 0 to 9, by turns."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([20.0, 236.0], (count, 8, 8, channels))  # far apart also at 8 x 8, as the theory's pairs need
    images = np.kron(coarse, np.ones((1, 4, 4, 1))) + rng.normal(0, 4, (count, 32, 32, channels))
    labels = np.arange(count) % 10
    np.savez(path, images=np.clip(np.rint(images), 0, 255).astype(np.uint8), labels=labels)


def toy_project(folder: Path, name: str) -> dict[str, Any]:
    """Make `folder` a git repository of this code with the preset at toy scale; return its parameters."""
    ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
    for part in COPIED:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, cwd=folder)
    yaml = YAML()
    document = preset._applied(name, folder / "params.yaml", toy=True)
    ingest = document["ingest"]
    for key, seed, count in (("source", 0, ingest["train"] + 200), ("holdout_source", 1, 400)):
        stand_in(folder / f"{key}.npz", seed, count, ingest["channels"])
        ingest[key] = f"npz:{key}.npz"
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    return load_tree(folder / "params.yaml")
