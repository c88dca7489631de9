"""The scoresmooth command.

Every command imports what it needs when it runs: `scoresmooth --help` would take several times as long otherwise.
"""

from pipeline.main_process import end_with  # noqa: I001  (first: it guards the imports that follow)
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.audit_command import audit, copybench, risk
from pipeline.processes import WorkFailed
from pipeline.signals import hang_up_as_terminate
from stages.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
server_app = typer.Typer(no_args_is_help=True, help="The project's local Prefect server.")
cluster_app = typer.Typer(no_args_is_help=True, help="The Ray cluster of execution.address.")
cache_app = typer.Typer(no_args_is_help=True, help="The cache of shard results.")
app.add_typer(server_app, name="server")
app.add_typer(cluster_app, name="cluster")
app.add_typer(cache_app, name="cache")

Params = Annotated[str, typer.Option(help="the parameter file")]
Runner = Annotated[str | None, typer.Option(help="local, ray or slurm, instead of execution.runner")]


PIPELINE = ("prefect", "dvc", "faiss", "grimp", "ruamel", "matplotlib", "httpx", "networkx", "sqlalchemy")
"""Modules that the extra `pipeline` installs; the audit and the review need none of them."""


def _print_version(asked: bool) -> None:
    if asked:
        print(f"scoresmooth {version('scoresmooth')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The scoresmooth command."""


def _choose_runner(name: str | None) -> None:
    """Override execution.runner in this process and in those that it starts."""
    if name is not None:
        os.environ["SCORESMOOTH_RUNNER"] = name


@app.command()
def stage(
    name: Annotated[
        str, typer.Argument(help="ingest, embed, train, ...; or with its variant, as DVC does: train@NAME")
    ],
    variant: Annotated[str | None, typer.Option(help="which variant of params.yaml")] = None,
    params: Params = "params.yaml",
    runner: Runner = None,
) -> None:
    """Run one stage as a Prefect flow: the command of the stages of dvc.yaml."""
    _choose_runner(runner)
    from pipeline.dispatch import run_stage
    from pipeline.stage_run import split_address

    stage, named = split_address(name)
    if variant is not None and named is not None:
        raise InputError(f"stage {name} --variant {variant}: name the variant once")
    run_stage(stage, variant or named, params)


@app.command()
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="stages (train, sample@NAME); default: all")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="how many stages run at the same time")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print which stages would run")] = False,
    params: Params = "params.yaml",
    runner: Runner = None,
) -> None:
    """Run the changed stages of the DVC graph as one Prefect flow, independent stages at the same time."""
    _choose_runner(runner)
    from pipeline.dispatch import run_graph

    if not run_graph(targets or [], jobs, dry_run, params):
        raise typer.Exit(1)
    if not dry_run and (not targets or "report" in targets):
        from pipeline.summary import print_summary_if_any

        print_summary_if_any(params)


@app.command()
def params(params: Params = "params.yaml", quiet: bool = False) -> None:
    """Validate all of params.yaml and print it, stage by stage."""
    import yaml

    from pipeline.params import load_params
    from pipeline.stage_run import title

    parameters = load_params(params)
    for section in parameters.stages.values():
        if hasattr(section, "check_places"):
            section.check_places()
    if not quiet:
        tree = {title(*key): value.model_dump(mode="json") for key, value in parameters.stages.items()}
        tree["execution"] = parameters.execution.model_dump(mode="json")
        print(yaml.safe_dump(tree, sort_keys=False), end="")


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="the preset to show; without it, list all presets")] = None,
    write: Annotated[bool, typer.Option("--write", help="change the parameter file")] = False,
    scale: Annotated[
        Literal["full", "toy"], typer.Option("--scale", help="toy: all variants and tables, on a CPU in minutes")
    ] = "full",
    params: Params = "params.yaml",
) -> None:
    """Show what a published set-up changes in params.yaml; with --write, change it (never over uncommitted edits)."""
    from pipeline import preset as presets

    if name is None:
        for each in presets.names():
            print(f"{each:20} {presets.about(each)}")
        return
    changed, removed = presets.changes(name, params, scale == "toy"), presets.removed(name, params)
    if write:
        presets.apply(name, params, scale == "toy")
    for line in changed:
        print(line)
    if removed:
        print(f"variants {'removed' if write else 'that --write removes'}: {', '.join(removed)}")
    if scale == "full" and (hours := presets.gpu_hours(name)):
        print(hours)
    print(f"{params} changed: {len(changed)} keys" if write else "nothing was written: add --write")


@app.command()
def results(
    theory: Annotated[bool, typer.Option("--theory", help="print every claim of the theory instead")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table alone, in Markdown")] = False,
) -> None:
    """Print the results table, the report's path and the address of the Prefect UI."""
    from pipeline.summary import RESULTS, print_summary
    from stages.files.paths import DATA
    from stages.reporting.terminal import print_markdown, print_theory

    if theory:
        print_theory(DATA)
    elif markdown:
        print_markdown(RESULTS)
    else:
        print_summary()


@app.command()
def review(
    folder: Annotated[Path, typer.Argument(help="data/filter/VARIANT, or the folder that an audit wrote")],
    reviewer: Annotated[str, typer.Option(help="your name; others' verdicts show only after yours")] = "first",
    verdicts: Annotated[
        Path | None, typer.Option(help="folder of verdicts.jsonl [default: data/verdicts/VARIANT or FOLDER]")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any free one")] = 8765,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    remote: Annotated[bool, typer.Option("--remote", help="allow a host other than loopback, with a token")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="only write verdicts.parquet")] = False,
) -> None:
    """Judge suspected pairs by eye, on a page in the browser; each verdict is written to disk immediately."""
    from pipeline.review.serve import Address, run

    run(folder, reviewer, verdicts, None if compact else Address(host, port, remote))


app.command()(audit)
app.command()(copybench)
app.command()(risk)


@app.command()
def code() -> None:
    """Write data/code/STAGE.txt, the files that each stage imports with their digests: the command of stage `code`."""
    from pipeline.dag import CODE_STAGE, write_code_lists
    from pipeline.stage_run import record_path
    from stages.files.artifacts import write_json

    write_code_lists()
    write_json(record_path(CODE_STAGE), {"shards": 0, "computed": 0, "seconds": 0})


@app.command()
def dag(write: Annotated[bool, typer.Option("--write", help="correct dvc.yaml")] = False) -> None:
    """Compare the deps and params of dvc.yaml with the code that the stages import and the keys that they read."""
    from pipeline.dag import update

    changed = update(write=write)
    for line in changed:
        print(line)
    if changed and not write:
        print("dvc.yaml differs from the code: run scoresmooth dag --write", file=sys.stderr)
        raise typer.Exit(1)


@server_app.command("start")
def server_start(
    timeout: Annotated[float, typer.Option(help="seconds to wait until it answers")] = 180.0,
    schedules: Annotated[bool, typer.Option("--schedules", help="also run deployments on their schedules")] = False,
) -> None:
    """Start the server unless it runs, print its address, and mark runs whose process was killed as crashed."""
    from pipeline import server

    if schedules:
        os.environ[server.SCHEDULES] = "1"
    found, started = server.ensure(timeout, lambda text: print(text, file=sys.stderr))
    server.become_client(found)
    from pipeline import tracking

    tracking.sweep()
    state = "started" if started else "already running"
    print(f"{found.address} ({state}, process {found.pid}; {server.how_to_log_in()})")


@server_app.command("status")
def server_status() -> None:
    """Print the running server's address; exit with code 1 if none runs."""
    from pipeline import server

    found = server.running()
    if found is None:
        print("not running")
        raise typer.Exit(1)
    state = "running" if server.is_ours(found.port) else "starting or not answering"
    about = f"{state}, process {found.pid}, {server.database_in_use()}, log in {server.HOME}"
    print(f"{found.address} ({about}; {server.how_to_log_in()})")


@server_app.command("stop")
def server_stop() -> None:
    """Stop the server. It keeps its history and shows it again after the next start."""
    from pipeline import server

    print("stopped" if server.stop() else "not running")


@cluster_app.command("check")
def cluster_check(params: Params = "params.yaml") -> None:
    """Print what every node of the cluster has, and what it lacks for this project (exit code 1)."""
    from pipeline.dispatch import import_runner
    from pipeline.params import load_params

    execution = load_params(params).execution
    import_runner("ray")
    from pipeline import cluster

    lines, missing = cluster.check(execution)
    print("\n".join(lines))
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        raise typer.Exit(1)


@server_app.command("prune")
def server_prune(
    days: Annotated[float, typer.Option(min=0, help="keep runs that ended within this many days")] = 30.0,
) -> None:
    """Delete old runs from the server's history now; it does so itself after 90 days. Results are not touched."""
    from pipeline import server

    found, _ = server.ensure()
    server.become_client(found)
    from pipeline import tracking

    print(f"deleted {tracking.prune(days)} runs")


@cache_app.command("size")
def cache_size() -> None:
    """Print how many files and bytes each stage's results take."""
    from pipeline import cache

    for name, (files, total) in cache.size().items():
        print(f"{name:12} {files:6} files {total / 1e6:10.1f} MB")


@cache_app.command("prune")
def cache_prune(
    days: Annotated[float, typer.Option(min=0, help="keep results that were used within this many days")] = 30.0,
) -> None:
    """Remove shard results that have not been used for some days. The stages' outs are not touched."""
    from pipeline import cache

    print(f"freed {cache.prune(days) / 1e6:.1f} MB")


def _use_code_of_working_directory() -> None:
    """Start again with the code of the working directory, if that holds another copy of the project.

    The console script imports the copy that was installed, which is other code than that of a second git worktree.
    """
    here = Path("pipeline/cli.py")
    if here.is_file() and not here.samefile(__file__) and not sys.flags.safe_path:
        os.execv(sys.executable, [sys.executable, "-m", "pipeline.cli", *sys.argv[1:]])


def main() -> None:
    """Run the command; wrong input is one line and exit code 2."""
    _use_code_of_working_directory()
    hang_up_as_terminate()
    code: int | str | None = 0
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except WorkFailed as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except SystemExit as end:
        code = end.code
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in PIPELINE:
            raise
        print(f"error: this command needs {error.name}: pip install 'scoresmooth[pipeline]'", file=sys.stderr)
        code = 2
    except Exception as error:
        if chosen := _chosen_server_behind(error):
            named = f"{chosen}, which PREFECT_API_URL or the profile names"
            print(f"error: no Prefect server answers at {named}: start it, or unset that", file=sys.stderr)
        elif _server_gone():
            traceback.print_exc()
            print("error: the Prefect server has ended; finished shards stay cached: run again", file=sys.stderr)
        else:
            raise
        code = 1
    if _server_gone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    end_with(code)


def _chosen_server_behind(error: BaseException | None) -> str | None:
    """The API of the server that the user chose, where `error` comes of a request that it did not answer."""
    if "prefect" not in sys.modules:
        return None
    import httpx

    from pipeline import server

    named = server.chosen_api()
    if named is None or named == os.environ.get(server.OWN):
        return None
    chosen = httpx.URL(named).copy_with(userinfo=b"")  # no password is shown
    while error is not None:
        if isinstance(error, httpx.TransportError) and error.request.url.netloc == chosen.netloc:
            return str(chosen)
        error = error.__cause__ or error.__context__
    return None


def _server_gone() -> bool:
    """Whether Prefect is in use and the project's server was killed: at exit Prefect would wait for it forever."""
    if "prefect" not in sys.modules or "PREFECT_API_URL" not in os.environ:
        return False
    from pipeline import server

    return server.gone(os.environ["PREFECT_API_URL"])


if __name__ == "__main__":
    main()
