"""Audit any generative model: how many of its samples copy its training images, how sure that is, and which.

    python -m stages.audit --train SRC --samples SRC [--holdout SRC] --out DIR [...]

Unlike the stages of the pipeline it needs no params.yaml: two sets of images, and better a third one of real images
that the model has not seen. Every metric is also computed for those, and the difference carries an interval; without
them a random half of the training set is searched against the other half. Finished pieces are kept in DIR/.work: an
interrupted audit goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stages.auditing.settings import AuditParams, audit_params
from stages.errors import InputError

DONE, COPIES_ABOVE_LIMIT, INTERRUPTED = 0, 3, 130
RESUME = "interrupted: the same command goes on where it stopped"


def run(params: AuditParams, quiet: bool = False) -> int:
    """Carry out an audit, write its files, print its answer; returns the exit code (0, or 3 above `fail_above`)."""
    from stages.auditing.course import Course
    from stages.auditing.store import Progress, Store, prepare_folder

    progress = Progress(quiet)
    store = Store(prepare_folder(params.out), progress)
    with progress.running():
        result = Course(params, store).run()
    limit, rate = params.fail_above, result["metrics"]["calibrated"]
    print(_answer(result, params.out))
    if limit is not None and rate["ci_high"] > limit:
        print(f"the rate may be as high as {rate['ci_high']:.3%}, above --fail-above {limit:g}", file=sys.stderr)
        return COPIES_ABOVE_LIMIT
    return DONE


def _answer(result: dict[str, Any], out: Path) -> str:
    m = result["metrics"]["calibrated"]
    lines = [
        f"{m['flagged']:,} of {m['count']:,} samples are copies: "
        f"{m['rate']:.2%} [{m['ci_low']:.2%}, {m['ci_high']:.2%}]",
        f"unseen real images under the same rule: {m['holdout_rate']:.2%}; "
        f"excess {m['excess']:+.2%} [{m['excess_low']:+.2%}, {m['excess_high']:+.2%}]",
        "verdicts: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in result["verdicts"].items()),
        f"report: {(out / 'report.html').absolute()}",
    ]
    return "\n".join([*(f"note: {note}" for note in result["notes"]), *lines])


def main() -> None:
    """The command line of `python -m stages.audit`; `scoresmooth audit` is the same."""
    parser = argparse.ArgumentParser(prog="python -m stages.audit", description=__doc__.splitlines()[0])
    for name, field in AuditParams.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, required=field.is_required(), default=argparse.SUPPRESS, help=field.description)
    try:
        sys.exit(run(audit_params(**vars(parser.parse_args()))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(RESUME, file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
