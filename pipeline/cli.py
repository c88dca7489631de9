"""The scoresmooth command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stages.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
server_app = typer.Typer(no_args_is_help=True, help="The project's local Prefect server.")
cache_app = typer.Typer(no_args_is_help=True, help="The cache of shard results.")
app.add_typer(server_app, name="server")
app.add_typer(cache_app, name="cache")

Params = Annotated[str, typer.Option(help="the parameter file")]


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="ingest, deduplicate, embed, index, train, sample, filter, fid, ...")],
    variant: Annotated[str | None, typer.Option(help="which variant of params.yaml")] = None,
    params: Params = "params.yaml",
) -> None:
    """Run one stage as a Prefect flow: what dvc.yaml calls."""
    from pipeline.dispatch import run_stage

    run_stage(name, variant, params)


@app.command()
def params(params: Params = "params.yaml", quiet: bool = False) -> None:
    """Validate all of params.yaml and print it, stage by stage."""
    import yaml

    from pipeline.params import load_params
    from pipeline.stage_run import title

    parameters = load_params(params)
    if not quiet:
        tree = {title(*key): value.model_dump(mode="json") for key, value in parameters.stages.items()}
        tree["execution"] = parameters.execution.model_dump(mode="json")
        print(yaml.safe_dump(tree, sort_keys=False), end="")


@app.command()
def results(
    theory: Annotated[bool, typer.Option("--theory", help="print every claim of the theory instead")] = False,
) -> None:
    """Print the results table, the report's path and the address of the Prefect UI."""
    from pipeline import server
    from stages.protocol import DATA
    from stages.reporting.results import print_results, print_theory

    if theory:
        print_theory(DATA / "verify")
        return
    print_results(DATA / "report" / "results.json")
    found = server.running()
    print(f"\nreport      {(DATA / 'report' / 'report.html').absolute()}")
    print(f"Prefect UI  {found.address if found else 'not running: scoresmooth server start'}")


@app.command()
def review(
    folder: Annotated[Path, typer.Argument(help="data/filter/VARIANT, or the folder that an audit wrote")],
    reviewer: Annotated[str, typer.Option(help="whose verdicts these are; others' show once you decided")] = "first",
    verdicts: Annotated[
        Path | None, typer.Option(help="folder of verdicts.jsonl; data/verdicts/VARIANT or FOLDER")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8765,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    remote: Annotated[bool, typer.Option("--remote", help="allow another host than loopback, with a token")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="write verdicts.parquet and stop")] = False,
) -> None:
    """Judge suspected pairs by eye, on a page in the browser; every verdict is on disk at once."""
    from pipeline.review.serve import Address, run

    run(folder, reviewer, verdicts, None if compact else Address(host, port, remote))


@app.command()
def dag(write: Annotated[bool, typer.Option("--write", help="correct dvc.yaml")] = False) -> None:
    """Compare the code deps and params of dvc.yaml with what the stages import and read."""
    from pipeline.dag import update

    changed = update(write=write)
    for line in changed:
        print(line)
    if changed and not write:
        print("dvc.yaml is behind the code: run scoresmooth dag --write", file=sys.stderr)
        raise typer.Exit(1)


@server_app.command("start")
def server_start(timeout: Annotated[float, typer.Option(help="seconds to wait for it")] = 180.0) -> None:
    """Start the server, or find the running one, and print its address."""
    from pipeline import server

    found, started = server.ensure(timeout)
    print(f"{found.address} ({'started' if started else 'already running'}, process {found.pid})")


@server_app.command("status")
def server_status() -> None:
    """Print the running server's address; exit code 1 if there is none."""
    from pipeline import server

    found = server.running()
    if found is None:
        print("not running")
        raise typer.Exit(1)
    state = "running" if server.is_ours(found.port) else "starting or not answering"
    print(f"{found.address} ({state}, process {found.pid}, database and log in {server.HOME})")


@server_app.command("stop")
def server_stop() -> None:
    """Stop the server. Its history stays and shows again after the next start."""
    from pipeline import server

    print("stopped" if server.stop() else "not running")


@cache_app.command("size")
def cache_size() -> None:
    """Print how much each stage's results take."""
    from pipeline import cache

    for name, (files, total) in cache.size().items():
        print(f"{name:12} {files:6} files {total / 1e6:10.1f} MB")


@cache_app.command("prune")
def cache_prune(
    days: Annotated[float, typer.Option(min=0, help="keep what was used within so many days")] = 30.0,
) -> None:
    """Remove shard results that were not used lately. The stages' outs are not touched."""
    from pipeline import cache

    print(f"freed {cache.prune(days) / 1e6:.1f} MB")


def main() -> None:
    """Run the command; wrong input is one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
