"""What a reader sees of a report, as text."""

import html
import re


def text_of(page: str) -> str:
    """What a reader sees of the page's prose, without figures, style, scripts and parameters."""
    for tag in ("style", "script", "svg", "pre"):
        page = re.sub(rf"<{tag}\b.*?</{tag}>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def strings(value: object) -> list[str]:
    """Every string in a JSON value."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in strings(item)]
    return [value] if isinstance(value, str) else []
