"""The small projects that chaos.py disturbs: shards without Prefect, a real training, a stage with its server."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from clocks import CLOCK
from diffusion_project import small_params
from dispatched import Dispatched
from small_project import ROOT, SmallProject
from watching import processes

from stages.files.artifacts import write_json
from stages.files.images import image_table, write_images
from stages.files.paths import SPREAD
from stages.images.spread import spread

LIMIT, LONGEST = 400.0, 4000.0
"""Seconds without any work after which a command hangs (Prefect asks a dead server for two minutes), and with work."""


class Arena:
    """A project in `folder`, the command that is disturbed, and what may be damaged between two runs."""

    def __init__(self, project: SmallProject) -> None:
        self.project, self.folder = project, project.folder
        self.cache = self.folder / ".scoresmooth"
        self.expected: dict[str, bytes] = {}

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        raise NotImplementedError

    def damageable(self) -> list[Path]:
        """Files in which any bit may be wrong. Locks hold nothing, and the inputs are not the command's."""
        return [
            path for path in sorted((self.cache / "shards").rglob("*")) if path.is_file() and path.suffix != ".lock"
        ]

    def outs(self) -> dict[str, bytes]:
        """The content of all outs."""
        return {path.as_posix(): path.read_bytes() for path in sorted(self.folder.glob(self.OUTS)) if path.is_file()}

    def spoil(self, rng: random.Random) -> None:
        """Make the outs and some results missing, so that there is work."""
        for out in self.folder.glob(self.OUTS):
            out.unlink()
        for manifest in sorted((self.cache / "shards").rglob("*.manifest")):
            if rng.random() < 0.7:
                manifest.unlink()

    def remember(self, *stages: str) -> None:
        """Run stages without dispatch and faults, and keep their outs."""
        for address in stages:
            stage, _, variant = address.partition("@")
            command = [sys.executable, "-m", f"stages.{stage}", *(["--variant", variant] if variant else [])]
            subprocess.run(command, cwd=self.folder, env=self.project.environment(), check=True, timeout=LONGEST)
        self.expected = self.outs()
        assert self.expected

    def close(self) -> None:
        """End what the arena started."""


class Shards(Arena):
    """Three stages without Prefect: shards in threads, a training in a process of its own."""

    OUTS, FAULTS = "data/*/**/*.*", ("kill", "terminate", "interrupt", "stop", "flip", "cut", "remove", "fill", "clock")

    def __init__(self, folder: Path) -> None:
        super().__init__(Dispatched(folder))
        slow = "\n_work = work\ndef work(shard):\n    time.sleep(0.05)\n    return _work(shard)\n"
        for name in ("ingest", "train", "sample"):
            self.project.write_stage(name, slow)
        self.remember("ingest", "train@net", "sample@net")
        mount(self.cache / "shards", "4m")

    def start(self) -> subprocess.Popen[str]:
        self.project.prelude = CLOCK
        return self.project.start_stages("ingest", "train@net", "sample@net")

    def damageable(self) -> list[Path]:
        kept = [path for path in super().damageable() if path.parent.suffix != ".scratch"]  # text without a digest
        return kept + [path for path in (self.cache / "digests.sqlite", self.cache / "params.valid") if path.exists()]

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.cache / "shards")], check=False)


class Training(Shards):
    """The project's own training of a small network, with checkpoints and snapshots that are flipped and cut."""

    OUTS, FAULTS = "data/train/**/*.*", ("kill", "terminate", "stop", "kill+flip", "kill+cut", "kill+remove", "fill")

    def __init__(self, folder: Path) -> None:
        Arena.__init__(self, Training.Project(folder))
        pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
        write_images(folder / "data/deduplicate/train.arrow", image_table(pixels))
        write_json(folder / SPREAD, spread(pixels))
        tree = small_params()
        tree["train"]["optimization"] |= {"steps": 60, "checkpoint_every": 6, "keep": 3}
        tree["train"]["snapshots"] = [20, 45]
        (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        self.remember("train@net-conditioning")
        mount(self.cache / "shards", "16m")

    class Project(Dispatched):
        """The folder with the real stages."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder
            folder.mkdir()
            for name in ("pipeline", "stages"):
                (folder / name).symlink_to(ROOT / name)

    def start(self) -> subprocess.Popen[str]:
        return self.project.start_stages("train@net-conditioning")

    def damageable(self) -> list[Path]:
        return Arena.damageable(self)


class Server(Arena):
    """A stage as a user runs it, with the project's Prefect server."""

    OUTS, FAULTS = "data/sample/**/*.*", (
        "kill", "interrupt", "stop", "flip", "cut", "remove", "stop-server", "kill-server", "remove-server", "record",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(SmallProject(folder))
        self.project.params["execution"]["server_timeout"] = LIMIT
        self.project.write_params()
        slow = "\n_work = work\ndef work(shard):\n    time.sleep(0.3)\n    return _work(shard)\n"
        self.project.write_stage("sample", slow)
        self.remember("ingest", "train@net", "sample@net")

    def start(self) -> subprocess.Popen[str]:
        return self.project.start("stage", "sample", "--variant", "net")

    def close(self) -> None:
        self.project.stop()


def mount(folder: Path, size: str) -> None:
    """Put a small disk over a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)


def servers(arena: Arena) -> list[int]:
    return processes(arena.project, "prefect\0server\0start")
