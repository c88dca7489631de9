"""model-card.md: ten lines for the card of an audited model, without names of files."""

from typing import Any

from stages.memorization.audit_settings import ROLES

DEFAULTS = {
    "out",
    "work",
    "memory_budget",
    "device",
    "groups",
    "weights",
    "fail_above",
    "group_by",
    "no_images",
    *ROLES,
}
"""Options that name places, or change no number of this section."""


def model_card(result: dict[str, Any]) -> str:
    """Return the section as Markdown. result: what audit.json holds."""
    m, tested = result["metrics"]["calibrated"], result["thresholds_self_test"]["metrics"]["calibrated"]
    verdicts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in result["verdicts"].items())
    recall = ", ".join(f"{kind} {value:.0%}" for kind, value in tested["recall"].items())
    size, thresholds = " × ".join(map(str, result["resolution"])), result["thresholds"]
    digests = ", ".join(f"{role} `{digest[:16]}`" for role, digest in sorted(result["digests"].items()))
    copies = (
        f"{m['flagged']:,} of {m['count']:,} samples copy a training image: {m['rate']:.2%} (95 % interval "
        f"{m['ci_low']:.2%} to {m['ci_high']:.2%})"
    )
    failed = result["failure"] and f"no answer: {result['failure'].partition(':')[0]}"
    lines = [
        f"- Copies: {failed or copies}.",
        f"- Control: the same rule flags {m['holdout_rate']:.2%} of {m['holdout_count']:,} real images; excess "
        f"{m['excess']:+.2%} (95 % interval {m['excess_low']:+.2%} to {m['excess_high']:+.2%}).",
        f"- Verdicts: {verdicts}; {result['extraction']['unique_training_images']:,} different training images copied.",
        f"- Searched: {result['train']['count']:,} training images at {size}, coverage {result['coverage']:.4g}.",
        f"- Rule: rho* below {thresholds['copy']:.3g}; near copy below {thresholds['candidate']:.3g}, features alike.",
        f"- Self-test, planted copies found by this rule: {recall}.",
        f"- Images (sha256): {digests}; seed {result['seeds']['seed']}.",
        f"- Made with scoresmooth {result['versions']['scoresmooth']}, torch {result['versions']['torch']}: "
        f"`{command(result)}`",
    ]
    return "\n".join(["## Memorization", "", *lines]) + "\n"


def command(result: dict[str, Any]) -> str:
    """Return the command that gives these numbers, with the roles in place of the sources."""
    sources = [f"--{role} {role.upper()}" for role in ROLES if result[role]["digest"]]
    options = {name: value for name, value in result["settings"].items() if name not in DEFAULTS and value is not None}
    return " ".join(["scoresmooth audit", *sources, *(f"--{n.replace('_', '-')} {v}" for n, v in options.items())])
