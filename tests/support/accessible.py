"""What a page lacks for those who hear it, read it on a phone or print it."""

import re
from html.parser import HTMLParser


class _Page(HTMLParser):
    """Pictures without a name, headers without text and tables that cannot scroll, into `faults`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.counts = {"svg": 0, "img": 0, "th": 0, "table": 0}
        self._open: list[tuple[str, str]] = []  # tags other than void ones, with their classes
        self._header: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        where = f"<{tag}> at line {self.getpos()[0]}"
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag == "svg" and (found.get("role") != "img" or not (found.get("aria-label") or "").strip()):
            self.faults.append(f"{where} has no name")
        if tag == "img" and not (found.get("alt") or "").strip():
            self.faults.append(f"{where} has no alternative text")
        if tag == "table" and not any("scroll" in classes.split() for _, classes in self._open):
            self.faults.append(f"{where} is wider than a phone and cannot scroll")
        if tag == "th":
            self._header = found.get("aria-label") or ""
        if tag not in ("meta", "link", "img", "br", "input"):
            self._open.append((tag, found.get("class") or ""))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, data):
        if self._header is not None:
            self._header += data

    def handle_endtag(self, tag):
        if tag == "th":
            if not (self._header or "").strip():
                self.faults.append(f"<th> before line {self.getpos()[0]} has no text")
            self._header = None
        while self._open and self._open.pop()[0] != tag:
            pass


def missing_names(page: str) -> list[str]:
    """SVGs without role and label, pictures without alternative text, headers without text, tables outside .scroll."""
    return _Page(page).faults


def counts(page: str) -> dict[str, int]:
    """How often each tag occurs."""
    return _Page(page).counts


def style_of(page: str) -> str:
    """The page's style sheet, without comments."""
    return re.sub(r"/\*.*?\*/", "", "".join(re.findall(r"<style>(.*?)</style>", page, re.S)), flags=re.S)


def media(style: str, condition: str) -> dict[str, dict[str, str]]:
    """selector -> {property: value} of the rules under @media whose condition holds `condition`; later rules win."""
    return _rules("".join(body for head, body in _blocks(style) if head.startswith("@media") and condition in head))


def everywhere(style: str) -> dict[str, dict[str, str]]:
    """selector -> {property: value} of the rules outside @media."""
    return _rules("".join(f"{head} {{{body}}}" for head, body in _blocks(style) if not head.startswith("@")))


def _blocks(style: str) -> list[tuple[str, str]]:
    """(what stands before the brace, what stands between the braces) of every outermost block."""
    blocks, depth, start, head = [], 0, 0, ""
    for place, sign in enumerate(style):
        if sign == "{":
            if depth == 0:
                head, start = style[start:place].strip(), place + 1
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                blocks.append((head, style[start:place]))
                start = place + 1
    return blocks


def _rules(style: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for head, body in _blocks(style):
        pairs = (line.split(":", 1) for line in body.split(";") if ":" in line)
        values = {name.strip(): value.strip() for name, value in pairs}
        for selector in re.split(r",(?![^(]*\))", head):
            found.setdefault(selector.strip(), {}).update(values)
    return found
