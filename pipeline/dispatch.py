"""From params.yaml to a stage's outs: validate, lock and plan the stage, then run it as a flow."""

import importlib
import os
import signal
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline import cache, closure, gpus, server
from pipeline.locks import locked
from pipeline.main_process import lasting_imports
from pipeline.params import Execution, Parameters, check_params, load_params, load_stage, stage_module
from pipeline.repro import SAME_THREADS, Reproducer, StageFailed, threads_alone
from pipeline.runners import LocalRunner, Runner
from pipeline.stage_run import StageRun, address_of, record_path, say, split_address, title
from stages.errors import InputError
from stages.files.artifacts import write_json
from stages.files.paths import LOCAL
from stages.protocol import Shard, StageParams

if TYPE_CHECKING:
    from pipeline.graph import StageGraph


def run_stage(name: str, variant: str | None = None, path: Path | str = "params.yaml") -> None:
    """Run one stage. All of params.yaml is validated first; wrong input raises InputError.

    If the stage is already running, for example because only `dvc` was killed, this waits for it. A variant without
    shards (the training of a closed form) is gathered here, without a flow.
    """
    started = time.monotonic()
    params, execution = load_stage(name, variant, path)
    label, address = title(name, variant), address_of(name, variant)

    def waiting(pid: str) -> None:
        say(f"{label}: process {pid} is still running this stage: waiting for it to end")

    with locked(LOCAL / "locks" / f"{address}.lock", waiting):
        shards, computed = stage_module(name).plan(params), 0
        if shards or variant is None:
            computed = _dispatch(name, variant, params, execution, shards)
        else:
            StageRun(name, variant, params, execution, (), None).gather()
        seconds = time.monotonic() - started
        write_json(record_path(address), {"shards": len(shards), "computed": computed, "seconds": seconds})
    say(f"{label}: done in {seconds:.1f} s")
    if name == "report" and "DVC_EXP_NAME" in os.environ:  # `dvc exp run` itself prints no results
        from pipeline.summary import print_summary_if_any  # imports rich, which few stages need

        print_summary_if_any(path)


def _dispatch(name: str, variant: str | None, params: StageParams, execution: Execution, shards: list[Shard]) -> int:
    code = closure.code_digest(name)
    known: dict[Path, str] = {}  # all shards together read each input once
    placed = tuple(cache.place(shard, code, known=known) for shard in shards)
    missing = sum(not cache.manifest_path(shard).exists() for shard in placed)
    with ExitStack() as stack:
        if execution.runner != "local":
            runner: Runner = _cluster_runner(name, params, execution, len(shards))
        else:
            if not execution.gpus_per_job:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            each = gpus_each(name, params, execution) if gpus.visible() else 0
            if each and name not in execution.processes:  # its shards are threads of this process
                stack.enter_context(gpus.reserved(each, say, execution.gpu_timeout))
            jobs = local_jobs(name, params, execution, each)
            runner = LocalRunner(jobs, execution.processes, each, execution.gpu_timeout)
            stack.enter_context(runner)
            runner.prepare(name, missing)
        address = server.connect(say, execution.server_timeout)
        with lasting_imports():
            from pipeline import flows  # imports prefect, which must see the environment that `connect` sets

        return flows.run(StageRun(name, variant, params, execution, placed, address), runner)


def gpus_each(name: str, params: StageParams, execution: Execution) -> int:
    """GPUs of one shard, where there are any: a training of several processes needs them for each.

    Raises InputError if this machine has GPUs, but fewer.
    """
    if not may_use_gpu(name, params):
        return 0
    processes, there = getattr(params, "processes", 1), len(gpus.visible())
    count = processes * execution.gpus_per_job
    if processes > 1 and 0 < there < count and execution.runner == "local":
        raise InputError(
            f"{name}.processes {processes} x execution.gpus_per_job {execution.gpus_per_job} need {count} GPUs, "
            f"{there} are visible: lower {name}.processes to {max(1, there // execution.gpus_per_job)}"
        )
    return count


def local_jobs(name: str, params: StageParams, execution: Execution, each: int) -> int:
    """How many shards of a stage run at once on this machine; each: GPUs of each, 0 on the CPU."""
    return 1 if not each and _several_threads(name, params) else _jobs(execution, each)


def _jobs(execution: Execution, each: int) -> int:
    """How many shards run at once on this machine, each with `each` GPUs of its own (0: on the CPU)."""
    if not each:
        return execution.jobs or 1
    most = max(1, len(gpus.visible()) // each)
    return min(execution.jobs or most, most)


def _cluster_runner(name: str, params: StageParams, execution: Execution, shards: int) -> Runner:
    module = import_runner(execution.runner)
    wanted = execution.gpus_per_job if may_use_gpu(name, params) else 0
    if execution.runner == "slurm":
        return module.SlurmRunner(execution, wanted, shards)
    resources = module.RayResources(execution.cpus_per_job, wanted, execution.node_timeout)
    return module.RayRunner(execution.address, resources, execution.shared, shards, execution.node_cache)


PACKAGES = {"ray": "ray", "slurm": "submitit"}


def import_runner(name: str) -> ModuleType:
    """Import the runner of a cluster, "ray" or "slurm". Raises InputError if its package is not installed."""
    # without this Ray restarts a shard that its memory monitor killed forever; Ray reads it when it is imported
    os.environ.setdefault("RAY_task_oom_retries", "0")
    try:
        return importlib.import_module(f"pipeline.{name}_runner")
    except ModuleNotFoundError as error:
        if error.name != PACKAGES[name]:
            raise
        package = "which" if name == "ray" else "whose package submitit"
        remedy = f"pip install '.[pipeline,{name}]'"
        raise InputError(f"execution.runner is {name}, {package} is not installed: {remedy}") from error


def may_use_gpu(name: str, params: StageParams) -> bool:
    """Whether the stage computes on a GPU where there is one."""
    return getattr(params, "device", "auto") != "cpu" and "stages/device.py" in closure.code_files(name)


def run_graph(targets: list[str], jobs: int, dry: bool, path: Path | str = "params.yaml") -> bool:
    """Bring the targets and all that they depend on up to date (`scoresmooth repro`); return False if a stage failed.

    A second run in the same project waits for the first. With `dry`, only print which stages would run.
    """
    check_params(path)
    with lasting_imports():
        from pipeline.graph import StageGraph  # imports dvc

    def waiting(pid: str) -> None:
        say(f"process {pid} is running scoresmooth repro here: waiting for it to end")

    with locked(LOCAL / "locks" / "repro.lock", waiting) if not dry else nullcontext():
        graph = StageGraph(targets)
        changed = graph.changed_first
        stages = graph.below(changed)
        if not stages:
            say("Data and pipelines are up to date.")
        if dry:
            for line in graph.planned(changed):
                print(line)
        return dry or not stages or _run_stages(graph, stages, changed, jobs, load_params(path))


def _run_stages(graph: "StageGraph", stages: set[str], changed: set[str], jobs: int, parameters: Parameters) -> bool:
    # a process started in the background ignores SIGINT, and the stages that it starts would inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    address = server.connect(say, parameters.execution.server_timeout)
    with lasting_imports():
        from pipeline import repro_flow  # imports prefect, as above

    def limit(name: str) -> int:
        stage, params = _parameters_of(name, parameters)
        each = gpus_each(stage, params, parameters.execution) if gpus.visible() and params is not None else 0
        return max(1, len(gpus.visible()) // each) if each else jobs

    reproducer = Reproducer(jobs, changed, lambda name: bool(graph.changed([name])))
    alone = {name for name in stages if jobs > 1 and _runs_alone(name, parameters)}
    try:
        outcomes = repro_flow.run(graph, stages, reproducer, limit, alone, address is not None)
    except StageFailed:
        return False  # it was printed when it happened
    for outcome in outcomes:
        say(f"{outcome.name:40} {outcome.state:10} {outcome.seconds:8.1f} s {outcome.memory:6.0f} MiB")
    return True


def _parameters_of(name: str, parameters: Parameters) -> tuple[str, StageParams | None]:
    """The stage and its parameters by DVC's name ("sample@closed-kernel"); the stage `code` has no parameters."""
    stage, variant = split_address(name)
    return stage, parameters.stages.get((stage, variant))


def _several_threads(stage: str, params: StageParams) -> bool:
    """Whether a shard of the stage takes several threads on a CPU, beside which nothing else may run."""
    return stage in SAME_THREADS and (getattr(params, "threads", None) or threads_alone()) > 1


def _runs_alone(name: str, parameters: Parameters) -> bool:
    """Whether nothing may run beside a stage, because its result depends on its number of threads."""
    stage, params = _parameters_of(name, parameters)
    if params is None or parameters.execution.runner != "local" or not _several_threads(stage, params):
        return False
    on_gpu = bool(gpus.visible()) and may_use_gpu(stage, params)
    # a closed form trains nothing; the stage's plan would say so, too, but what it reads need not exist yet
    return not on_gpu and not (stage == "train" and params.spec.score == "closed-form")
