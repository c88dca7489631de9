"""One stage from params.yaml to its outs: validated, locked, planned, then given to a flow."""

import time
from pathlib import Path

from pipeline import cache, closure, server
from pipeline.locks import locked
from pipeline.params import Execution, load_stage, stage_module
from pipeline.runners import LocalRunner
from pipeline.stage_run import StageRun, say, title
from stages.protocol import CACHE, Shard, StageParams


def run_stage(name: str, variant: str | None = None, path: Path | str = "params.yaml") -> None:
    """Run one stage. All of params.yaml is validated first; wrong input raises InputError.

    A stage that is running already, say because only `dvc` was killed, is waited for. A variant without any work
    (the training of a closed form) is gathered right here, without a flow.
    """
    started = time.monotonic()
    params, execution = load_stage(name, variant, path)
    label = title(name, variant)

    def waiting(pid: str) -> None:
        say(f"{label}: process {pid} still runs this stage: waiting for it to end")

    with locked(CACHE / "locks" / f"{label.replace(' ', '@')}.lock", waiting):
        shards = stage_module(name).plan(params)
        if shards or variant is None:
            _dispatch(name, variant, params, execution, shards)
        else:
            stage_module(name).gather(params, [])
    say(f"{label}: done in {time.monotonic() - started:.1f} s")


def _dispatch(name: str, variant: str | None, params: StageParams, execution: Execution, shards: list[Shard]) -> None:
    code = closure.code_digest(name)
    placed = tuple(cache.place(shard, code) for shard in shards)
    missing = sum(not cache.manifest_path(shard).exists() for shard in placed)
    with LocalRunner(execution.jobs, execution.processes) as runner:
        runner.prepare(name, missing)
        address = server.connect(say, execution.server_timeout)
        from pipeline import flows  # imports prefect, which must see the environment that `connect` sets

        flows.run(StageRun(name, variant, params, execution, placed, address), runner)
