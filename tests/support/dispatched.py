"""A small project whose stages run without Prefect."""

import subprocess
import sys

from crowding import Process
from small_project import SmallProject

DISPATCH = """
import sys
from pipeline import cache
from pipeline.params import load_stage, stage_module
from pipeline.runners import LocalRunner
from pipeline.stage_run import StageRun
for address in sys.argv[1:]:
    name, _, variant = address.partition("@")
    params, execution = load_stage(name, variant or None)
    shards = [cache.place(shard, "code") for shard in stage_module(name).plan(params)]
    with LocalRunner(1, execution.processes) as runner:
        for shard in shards:
            cache.obtain(shard, runner.run, lambda text: print(text, flush=True))
    StageRun(name, variant or None, params, execution, tuple(shards), None).gather()
"""


class Dispatched(SmallProject):
    """A project whose stages run through cache and runner, but without Prefect.

    prelude: code that the stages' process runs first.
    """

    prelude = ""

    def start_stages(self, *addresses: str) -> subprocess.Popen[str]:
        """Start stages ("sample@net"), one after the other, in a process."""
        command = [sys.executable, "-c", self.prelude + DISPATCH, *addresses]
        return Process(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stages(self, *addresses: str, code: int = 0) -> str:
        """Run stages to their end, require the exit code, and return what they printed."""
        process = self.start_stages(*addresses)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, output
        return output
