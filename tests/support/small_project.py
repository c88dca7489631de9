"""A complete project with tiny stages in a folder of its own, to test the dispatch without the mathematics.

All work appends lines to work.log, so that a test can count what was computed. While a file `hold` holds a number,
work pauses as soon as the log has that many lines.
"""

import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.support.crowding import Process, limit  # benchmarks.orchestration imports this file without pytest

ROOT = Path(__file__).parents[2]

PARAMS: dict[str, Any] = {
    "ingest": {"train": 20},
    "deduplicate": None,
    "embed": None,
    "index": None,
    "train": {"steps": 10},
    "choose": None,
    "sample": {"count": 8, "shards": 4, "seed": 1},
    "filter": None,
    "fid": None,
    "verify": None,
    "report": None,
    "execution": {
        "jobs": 1,
        "processes": ["train"],
        "server_timeout": 180,
        "gpus_per_job": 1,
        "gpu_timeout": 600,
        "node_timeout": 1,
        "cpus_per_job": 1,
        "runner": "local",
        "address": None,
        "shared": None,
        "node_cache": None,
        "slurm": {"minutes": 60, "memory": None, "options": {}},
    },
    "variants": {"closed": {"network": False, "temperature": 1.0}, "net": {"network": True, "temperature": 1.0}},
}

COMMON = """
    import time
    from pathlib import Path
    from typing import Any, ClassVar
    from pydantic import Field
    from stages.files.artifacts import atomic_path, write_json, write_text
    from stages.errors import InputError
    from stages.files.paths import DATA
    from stages.protocol import Section, Shard, StageParams, main, spans

    def log(line):
        with open("work.log", "a") as file:
            file.write(line + "\\n")

    def pause():
        lines = Path("work.log")
        while (most := held_at()) is not None and lines.exists() and len(lines.read_text().splitlines()) >= most:
            time.sleep(0.02)

    def held_at():
        try:
            return int(Path("hold").read_text())  # read at once: the test removes it at any moment
        except FileNotFoundError:
            return None

    class Spec(Section):
        network: bool
        temperature: float = Field(gt=0)

        @property
        def score(self):
            return "toy network" if self.network else "closed-form"
"""

STAGES = {
    "ingest": """
        class Params(StageParams):
            SECTION = "ingest"
            train: int = Field(gt=0, le=1000)

        def plan(params):
            return [Shard("ingest", "text", "all", {"train": params.train}, (), ".txt")]

        def work(shard):
            log("ingest " + shard.name)
            return write_text(shard.path, "x" * shard.settings["train"])

        def gather(params, parts):
            write_text(DATA / "ingest" / "train.txt", parts["text"][0].read_text())
            write_json(DATA / "ingest" / "ingest.json", {"count": params.train})
    """,
    "train": """
        class Params(StageParams):
            SECTION = "train"
            SHARED = {"spec": "variants.{variant}"}
            PER_VARIANT = True
            variant: str
            spec: Spec
            steps: int = Field(gt=0)

        def plan(params):
            if not params.spec.network:
                return []
            settings = {"steps": params.steps, "temperature": params.spec.temperature}
            return [Shard("train", "train", params.variant, settings, ("data/ingest/train.txt",), ".txt")]

        def work(shard):
            checkpoint = shard.scratch / "checkpoint.txt"
            value = checkpoint.read_text() if checkpoint.exists() else ""
            if shard.settings["temperature"] == 13:
                raise InputError("temperature 13 is unlucky: take another")
            for step in range(len(value), shard.settings["steps"]):
                pause()
                value += chr(65 + step)
                write_text(checkpoint, value)
                log(f"train {shard.name} step {step}")
            return write_text(shard.path, value)

        def gather(params, parts):
            texts = [part.read_text() for part in parts.get("train", ())]
            write_json(DATA / "train" / params.variant / "score.json", texts)
    """,
    "sample": """
        class Params(StageParams):
            SECTION = "sample"
            SHARED = {"spec": "variants.{variant}"}
            PER_VARIANT = True
            variant: str
            spec: Spec
            count: int = Field(gt=0)
            shards: int = Field(gt=0)
            seed: int

        def plan(params):
            cuts = spans(params.count, params.shards)
            score = str(DATA / "train" / params.variant / "score.json")
            settings = {"seed": params.seed, "temperature": params.spec.temperature}
            return [
                Shard("sample", "samples", f"{params.variant} {n}/{len(cuts)}", own, (score,), ".bin")
                for n, own in enumerate(({**settings, "span": cut} for cut in cuts), 1)
            ]

        def work(shard):
            pause()
            first, last = shard.settings["span"]
            score = Path(shard.inputs[0]).read_bytes()
            with atomic_path(shard.path) as path:
                rows = (b"%d %d %r;" % (i, shard.settings["seed"], score) for i in range(first, last))
                path.write_bytes(b"".join(rows))
            log("sample " + shard.name)
            return shard.path

        def gather(params, parts):
            out = DATA / "sample" / params.variant
            with atomic_path(out / "samples.bin") as path:
                path.write_bytes(b"".join(part.read_bytes() for part in parts["samples"]))
            write_json(out / "sample.json", {"count": params.count})
    """,
}

PLAIN = """
    class Params(StageParams):
        SECTION = "NAME"
        PER_VARIANT = VARIANT
        FIELD

    def plan(params):
        return []

    def gather(params, parts):
        log("NAME")
        write_json(DATA / "NAME" / getattr(params, "variant", "") / "NAME.json", {})
"""


DVC = """
stages:
  ingest:
    cmd: {scoresmooth} stage ingest
    params: [ingest]
    outs: [data/ingest]
  train:
    foreach: ${{variants}}
    do:
      cmd: {scoresmooth} stage "$DVC_STAGE"
      deps: [data/ingest]
      params: [train, 'variants.${{key}}']
      outs: ['data/train/${{key}}']
  sample:
    foreach: ${{variants}}
    do:
      cmd: {scoresmooth} stage "$DVC_STAGE"
      deps: ['data/train/${{key}}']
      params: [sample, 'variants.${{key}}']
      outs: ['data/sample/${{key}}']
"""


def hear_interrupts() -> None:
    """As for a command at a terminal, also where the tests run in the background (which ignores SIGINT)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class SmallProject:
    """The project in `folder`. The commands run in processes of their own, as for a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
        (folder / "stages").mkdir()
        for name in ("__init__.py", "errors.py", "protocol.py"):
            shutil.copy(ROOT / "stages" / name, folder / "stages" / name)
        shutil.copytree(ROOT / "stages" / "files", folder / "stages" / "files")
        self.reset()

    def reset(self) -> None:
        """Write stages and params.yaml as they were in the beginning."""
        self.params = copy.deepcopy(PARAMS)
        self.params["execution"]["server_timeout"] = limit(PARAMS["execution"]["server_timeout"])
        for name in PARAMS:
            if name not in ("execution", "variants"):
                self.write_stage(name)
        self.write_params()

    def write_stage(self, name: str, suffix: str = "") -> None:
        """Write the stage's module; `suffix` is code added to its end."""
        variant = name in ("choose", "filter", "fid")
        plain = PLAIN.replace("NAME", name).replace("VARIANT", str(variant)).replace("PER_True", "PER_VARIANT")
        plain = plain.replace("FIELD", "variant: str" if variant else "")
        body = textwrap.dedent(STAGES.get(name, plain.replace("PER_False", "PER_VARIANT")))
        text = f'{textwrap.dedent(COMMON)}\n{body}\nif __name__ == "__main__":\n    main("{name}")\n{suffix}'
        (self.folder / "stages" / f"{name}.py").write_text(text)

    def write_params(self) -> None:
        """Write params.yaml from `self.params`."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        """The scoresmooth command of this project."""
        return [sys.executable, "-m", "pipeline.cli", *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        """Variables of the commands' processes, as in an activated environment: DVC starts its queue as `dvc`."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        quiet = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.folder / "site"), "PATH": path}
        return {**clean, **quiet, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command and return its process."""
        return Process(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Run a command to its end, require its exit code, and return what it printed."""
        process = self.start(*arguments, **variables)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{output}"
        return output

    def plain(self, stage: str, variant: str) -> None:
        """Run a stage without the dispatch."""
        command = [sys.executable, "-m", f"stages.{stage}", "--variant", variant]
        subprocess.run(command, cwd=self.folder, env=self.environment(), check=True, timeout=limit(60))

    def write_dvc(self, scm: bool = False) -> None:
        """Make it a DVC project with the stages ingest, train and sample; with `scm`, in a new git repository."""
        text = textwrap.dedent(DVC).format(scoresmooth=" ".join(self.command()))
        (self.folder / "dvc.yaml").write_text(text)
        if not (self.folder / ".dvc").exists():
            if scm:
                subprocess.run(["git", "init", "-q"], cwd=self.folder, check=True)
            self.dvc("init", "-q", *(() if scm else ("--no-scm",)))

    def dvc_command(self) -> list[str]:
        """DVC's command."""
        return [sys.executable, "-m", "dvc"]

    def dvc(self, *arguments: str) -> str:
        """Run a DVC command, require its success, and return what it printed."""
        done = subprocess.run(
            [*self.dvc_command(), *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=limit(240),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def hold(self, lines: int) -> None:
        """Let work pause as soon as the log has this many lines."""
        (self.folder / "hold.new").write_text(str(lines))
        (self.folder / "hold.new").rename(self.folder / "hold")

    def release(self) -> None:
        """Let work continue."""
        (self.folder / "hold").unlink(missing_ok=True)

    def log(self) -> list[str]:
        """What was computed since the last call."""
        path = self.folder / "work.log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines

    def stop(self) -> None:
        """End the project's server."""
        command = self.command("server", "stop")
        subprocess.run(command, cwd=self.folder, env=self.environment(), check=False, timeout=limit(60))
