"""Audit any generative model: how many of its samples copy its training images, how sure that is, and which.

    python -m stages.audit --train SRC --samples SRC [--holdout SRC] --out DIR [...]

Unlike the stages of the pipeline it needs no params.yaml: two sets of images, and better a third one of real images
that the model has not seen. Every metric is also computed for those, and the difference carries an interval; without
them a random half of the training set is searched against the other half.

An audit is a sequence of steps, each with plan, work and gather as a stage of the pipeline has them. Results of shards
lie in DIR/.work, so the same command resumes an interrupted audit.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from stages.errors import InputError
from stages.files.artifacts import sha256_file, sha256_json, write_json, write_text, write_tsv
from stages.memorization.audit_runs import RATES, Run, check_one_size, curve, is_pattern, named_runs
from stages.memorization.audit_settings import AuditParams, audit_params
from stages.memorization.options import make_writable
from stages.protocol import by_task

DONE, COPIES_ABOVE_LIMIT, SELF_TEST_FAILED, INTERRUPTED = 0, 3, 4, 130
RESUME = "interrupted: the same command resumes where it stopped"
STAGES = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished audit, whose files are written.

    Attributes:
        params: its options.
        result: what audit.json holds.
        pairs: what pairs.parquet holds.
        kept: int64, the rows of the samples' source that are not copies, ascending; unreadable samples are left out.
    """

    params: AuditParams
    result: dict[str, Any]
    pairs: pa.Table
    kept: np.ndarray

    @property
    def code(self) -> int:
        """The exit code: 0; 3 where the rate may lie above `fail_above`; 4 where the self-test misses copies."""
        limit = self.params.fail_above
        if self.result["failure"]:
            return SELF_TEST_FAILED
        above = limit is not None and self.result["metrics"]["calibrated"]["ci_high"] > limit
        return COPIES_ABOVE_LIMIT if above else DONE


def run_all(samples: Sequence[str], **options: Any) -> int:
    """Audit one set of samples, or the sets of several checkpoints (`run_curve`); return the exit code.

    samples: sources, or patterns of them. options: those of AuditParams besides.
    """
    if len(samples) == 1 and not is_pattern(samples[0]):
        return run(audit_params(**options, samples=samples[0]))
    return run_curve(named_runs(samples), options)


def run_curve(runs: list[Run], options: dict[str, Any], quiet: bool = False) -> int:
    """Audit every run into OUT/NAME with one folder of partial results; write curve.json, curve.tsv and curve.html.

    Return the exit code: 0; 3 where the last run's rate may lie above `fail_above`; 4 where a run has no answer.
    """
    from stages.reporting.audit_page.curve import render_curve, sentence

    out, done = audit_params(**{**options, "samples": runs[0].source}).out, []
    work = Path(options.get("work") or out / ".work")
    if options.get("no_images"):
        runs = [run._replace(name=f"run-{place}") for place, run in enumerate(runs, 1)]
    checked = [audit_params(**{**options, "samples": run.source, "out": out / run.name, "work": work}) for run in runs]
    for params in checked:
        done.append(perform(params, quiet))
        check_one_size(runs, [outcome.result for outcome in done])
        print(f"{params.out.name}: {one_line_answer(done[-1].result)}", flush=True)
    found = curve(runs, [outcome.result for outcome in done], checked[0].fail_above)
    write_text(out / "curve.html", render_curve(found))
    write_tsv(
        out / "curve.tsv", [{"name": r["name"], "step": r["step"]} | {n: r[n] for n in RATES} for r in found["runs"]]
    )
    write_json(out / "curve.json", found)
    if checked[0].no_images and not options.get("work"):
        shutil.rmtree(work)
    print(f"{sentence(found)}\nreport: {(out / 'curve.html').absolute()}")
    return SELF_TEST_FAILED if SELF_TEST_FAILED in (outcome.code for outcome in done) else done[-1].code


def one_line_answer(result: dict[str, Any]) -> str:
    """The rate of copies with its interval, or why there is none."""
    m = result["metrics"]["calibrated"]
    said = f"{m['flagged']:,} of {m['count']:,} samples are copies: "
    return result["failure"] or f"{said}{m['rate']:.2%} [{m['ci_low']:.2%}, {m['ci_high']:.2%}]"


def run(params: AuditParams, quiet: bool = False) -> int:
    """Carry out an audit, write its files, print its answer; return the exit code (`Outcome.code`)."""
    done = perform(params, quiet)
    result, limit = done.result, params.fail_above
    if done.code == SELF_TEST_FAILED:
        print("\n".join(f"note: {note}" for note in result["notes"]))
        print(f"error: {result['failure']} (details: {params.out / 'report.html'})", file=sys.stderr)
        return done.code
    print(answer(result, params.out))
    if done.code == COPIES_ABOVE_LIMIT:
        high = result["metrics"]["calibrated"]["ci_high"]
        print(f"the rate may be as high as {high:.3%}, above --fail-above {limit:g}", file=sys.stderr)
    return done.code


def perform(params: AuditParams, quiet: bool = False) -> Outcome:
    """Carry out an audit and write its files. quiet: without a progress bar."""
    from stages.memorization.audit_results import audit_result, pairs_table, write_tables
    from stages.reporting.audit_page.model_card import model_card
    from stages.reporting.audit_page.page import render
    from stages.reporting.progress import SecondsBar

    progress, work = SecondsBar(quiet), prepare_folder(params.out, params.work)
    # the threads of one product wait for the next one spinning, on processors that our own loops need in between
    with progress.running(), threadpool_limits(1, "blas"):
        audit = carry_out(params, work, progress)
        progress.step("writing")
        result = audit_result(audit)
        pairs = pairs_table(audit)
        result["verified"] = write_tables(params.out, pairs, audit)
        page = render(result, pairs, audit.judged, audit.control_judged, audit.queries.images, audit.train)
        write_text(params.out / "report.html", page)
        write_text(params.out / "model-card.md", model_card(result))
        write_json(params.out / "audit.json", result)  # the last one: where it is, all of them are
        progress.finish()
    kept = audit.sets["samples"].rows[~audit.judged.copied]
    if params.no_images and params.work is None:
        shutil.rmtree(work)  # it holds all images
    return Outcome(params, result, pairs, kept)


def carry_out(params: AuditParams, folder: Path, progress: Any) -> Any:
    """All steps of an audit, in order, with the results of their shards in `folder`; returns the finished Audit."""
    from stages.files.shard_cache import obtain, place
    from stages.memorization.audit_steps import Audit
    from stages.memorization.audit_work import work

    audit, code = Audit(params), code_digest()
    progress.expect(audit.expected_seconds())
    for step in audit.steps():
        known: dict[Path, str] = {}
        shards = [place(shard, code, folder / "shards", known) for shard in step.plan()]
        for shard in shards:
            progress.step(shard.name)
            obtain(shard, lambda shard, _: work(shard, params.budget), progress.say)
            progress.advance(audit.seconds(shard))
        step.gather(by_task(shards, [shard.path for shard in shards]))
    return audit


def code_digest() -> str:
    """Hex sha256 over the sources of `stages` and the versions of the packages that make the numbers."""
    from stages.memorization.audit_results import versions

    sources = {str(path.relative_to(STAGES)): sha256_file(path) for path in sorted(STAGES.rglob("*.py"))}
    return sha256_json([sources, versions()])


def prepare_folder(out: Path, work: Path | None = None) -> Path:
    """Make the folder of partial results, `work` or `out`/.work, and return it.

    InputError where it or `out` cannot be written, before any work is done.
    """
    place = work or out / ".work"
    make_writable("out", out, out if work else place)
    if work:
        make_writable("work", work, place)
    return place


def answer(result: dict[str, Any], out: Path) -> str:
    """The answer of a finished audit, in lines. result: what audit.json holds."""
    m, leaked = result["metrics"]["calibrated"], result["holdout"]["leaked"]
    apart = f" ({leaked:,} training {'image' if leaked == 1 else 'images'} among them left out)" if leaked else ""
    lines = [
        one_line_answer(result),
        f"unseen real images{apart} under the same rule: {m['holdout_rate']:.2%}; "
        f"excess {m['excess']:+.2%} [{m['excess_low']:+.2%}, {m['excess_high']:+.2%}]",
        "verdicts: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in result["verdicts"].items()),
        f"report: {(out / 'report.html').absolute()}",
    ]
    if people := result["verified"]:
        left = people["open"]
        words = f"{'at least ' if left else ''}{people['flagged']:,} of {people['count']:,} samples are copies"
        lines.insert(3, f"verified by eye: {words}{f'; {left:,} suspected pairs are open' if left else ''}")
    return "\n".join([*(f"note: {note}" for note in result["notes"]), *lines])


def main() -> None:
    """The command line of `python -m stages.audit`; `scoresmooth audit` is the same."""
    parser = argparse.ArgumentParser(prog="python -m stages.audit", description=__doc__.splitlines()[0])
    for name, field in AuditParams.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        kind: dict[str, Any] = {"required": field.is_required()}
        kind |= (
            {"action": "append"} if name == "samples" else {"action": "store_true"} if field.annotation is bool else {}
        )
        parser.add_argument(option, default=argparse.SUPPRESS, help=field.description, **kind)
    try:
        sys.exit(run_all(**vars(parser.parse_args())))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(RESUME, file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
