"""The examples run, and the docstrings' too."""

import ast
import doctest
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

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


def test_the_callback_stops_a_training_that_copies(tmp_path, capsys):
    names = runpy.run_path(str(EXAMPLES / "copies_during_training.py"))
    curve = names["main"](str(tmp_path))
    assert [(step, round(100 * rate)) for step, rate, _, _ in curve] == [(1000, 0), (2000, 10), (3000, 60)]
    assert "stopped after step 3000" in capsys.readouterr().out


def test_a_loop_of_diffusers_gives_its_pictures_to_the_callback():
    """With a pipeline that draws noise, as an untrained one does."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        8, 3, 3, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=2))
    pipeline.set_progress_bar_config(disable=True)
    loop = runpy.run_path(str(EXAMPLES / "copies_during_training.py"))["train_with_diffusers"]
    given, trained = [], []

    def monitor(step, pictures):
        given.append((step, len(pictures), pictures[0].size))
        return step == 2000

    wrapped = lambda batch_size: pipeline(batch_size=batch_size, num_inference_steps=2)  # noqa: E731
    assert loop(wrapped, trained.append, 3000, monitor) == 2000
    assert given == [(1000, 256, (8, 8)), (2000, 256, (8, 8))]
    assert trained == list(range(1, 2001))


def test_the_docstring_of_audit():
    assert doctest.testmod(scoresmooth.api) == (0, 9)
