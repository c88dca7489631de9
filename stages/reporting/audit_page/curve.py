"""The page of several audits of one training: copies against the step, and a link to the page of each audit."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.reporting.words import interval, number, percent

WIDTH, HEIGHT = 1000.0, 240.0


def render_curve(found: dict[str, Any]) -> str:
    """Return the whole page. found: what curve.json holds."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "number": number}
    environment.globals |= {"interval": interval}
    css = "".join(path.read_text(encoding="utf-8") for path in (here.parent / "report.css", here / "page.css"))
    template = environment.get_template("curve.html")
    return template.render(css=css, found=found, figure=_figure(found), answer=sentence(found))


def sentence(found: dict[str, Any]) -> str:
    """The answer: the last step below the limit, or the last step's rate."""
    last, limit = found["runs"][-1], found["fail_above"]
    rate = f"{last['name']}: {percent(last['rate'])} {interval(last['ci_low'], last['ci_high'])} copies"
    if last["failure"]:
        rate = f"{last['name']}: no answer"
    if limit is None:
        return f"{rate} (the last of {len(found['runs'])} sets of samples)"
    if found["last_below"] is None:
        return f"No step's interval lies below {percent(limit)}; {rate}"
    return f"The last step whose interval lies below {percent(limit)}: {found['last_below']}"


def _figure(found: dict[str, Any]) -> dict[str, Any]:
    """The curve in the coordinates of the page's SVG (1000 × 240). Runs without an answer have no point."""
    rows = [row for row in found["runs"] if row["failure"] is None]
    limit = found["fail_above"] or 0.0
    top = max([limit, 0.01, *(row["ci_high"] for row in rows)]) * 1.05
    steps = [row["step"] for row in found["runs"]]
    first, span = min(steps), max(1, max(steps) - min(steps))

    def x(step: int) -> float:
        return 20 + (WIDTH - 40) * (step - first) / span

    def y(rate: float) -> float:
        return HEIGHT * (1 - rate / top)

    names = {"y": "rate", "low": "ci_low", "high": "ci_high", "control": "holdout_rate"}
    points = [{"x": x(row["step"])} | {name: y(row[key]) for name, key in names.items()} for row in rows]
    return {
        "points": points,
        "line": " ".join(f"{p['x']:.1f},{p['y']:.1f}" for p in points),
        "control": " ".join(f"{p['x']:.1f},{p['control']:.1f}" for p in points),
        "limit": y(limit) if found["fail_above"] is not None else None,
        "ticks": [{"x": x(step), "label": f"{step:,}"} for step in steps],
        "rates": [{"y": y(rate), "label": percent(rate)} for rate in (0.0, top / 2, top)],
    }
