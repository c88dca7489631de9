"""The examples run, and the docstrings' too."""

import ast
import doctest
import json
from pathlib import Path

import numpy as np

import scoresmooth.api

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_notebook(path: Path) -> dict:
    """Run the code cells of a notebook in order; return its names, `_` being the last cell's last expression."""
    names: dict = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the outputs: they show what another version found"
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), path.name, "exec"), names)
            if isinstance(last, ast.Expr):
                names["_"] = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            else:
                exec(compile(ast.Module([last], []), path.name, "exec"), names)
    return names


def test_the_notebook_finds_what_it_planted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_notebook(EXAMPLES / "audit.ipynb")
    assert set(range(20)).isdisjoint(names["found"].kept)
    assert names["_"] == len(names["clean"]) >= 175
    assert np.array_equal(names["clean"], names["samples"][names["found"].kept])
    assert (tmp_path / "audit.html").stat().st_size > 100_000


def test_the_docstring_of_audit():
    assert doctest.testmod(scoresmooth.api) == (0, 9)
