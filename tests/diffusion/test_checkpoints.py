"""Checkpoints: resuming is exact, wrong ones are refused by name, signals and time limits leave one."""

import signal

import pytest
import torch
from safetensors.torch import save_file
from small_training import assert_identical, trainer, weights

from stages.diffusion.checkpoint import newest
from stages.diffusion.distributed import World
from stages.diffusion.loss_curve import LossCurve
from stages.errors import InputError
from stages.files.tensors import DamagedError, load_tensors, save_tensors


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_ends_with_identical_weights_and_curve(tmp_path, precision):
    """Interrupted between checkpoints, with dropout and flips: bit-identical to the undisturbed run."""
    whole = trainer(tmp_path / "a", precision=precision)
    curve = list(whole.run())
    broken = trainer(tmp_path / "b", precision=precision)
    for progress in broken.run():
        if progress.step == 9:  # after the checkpoint of step 8
            break
    resumed = trainer(tmp_path / "b", precision=precision)
    assert resumed.resume() == 8
    rest = list(resumed.run())
    assert_identical(weights(whole), weights(resumed))
    assert rest[-1] == curve[-1]


@pytest.mark.parametrize("stop", [4, 8])
def test_a_row_of_the_curve_that_spans_the_interruption_is_the_same(tmp_path, stop):
    """Rows after every 5 steps, checkpoints after every 4: the steps before a checkpoint count in the row after it."""
    whole = list(trainer(tmp_path / "a", log_every=5).run())
    broken = trainer(tmp_path / "b", log_every=5)
    run = iter(broken.run())
    rows = []
    while broken.training.step < stop or newest(tmp_path / "b") is None:
        rows.append(next(run))
    run.close()
    resumed = trainer(tmp_path / "b", log_every=5)
    reached = resumed.resume()
    assert [row for row in rows if row.step <= reached] + list(resumed.run()) == whole


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_process_resumes_with_its_own_part_of_the_curves_last_steps(size):
    """A checkpoint holds them process after process, as `World.all_gather` joins them."""
    steps, images = 3, 8 // size
    losses = torch.arange(8.0 * steps)
    window = {
        "losses": losses,
        "levels": losses.long() * 2,
        "steps": torch.arange(5, 5 + steps).repeat_interleave(images).repeat(size),
    }
    parts = []
    for rank in range(size):
        curve = LossCurve(torch.ones(100), World(rank, size))
        curve.restore({})
        assert curve.window == []
        curve.restore(window)
        parts += curve.window
    assert [part.step for part in parts] == [5, 6, 7] * size
    assert torch.equal(torch.cat([part.losses for part in parts]), losses)
    assert torch.equal(torch.cat([part.levels for part in parts]), losses.long() * 2)


@pytest.mark.faults
def test_sigterm_saves_a_checkpoint_at_once_and_the_rest_is_identical(tmp_path):
    whole = trainer(tmp_path / "a")
    list(whole.run())
    broken = trainer(tmp_path / "b")
    with pytest.raises(SystemExit) as stopped:
        for progress in broken.run():
            if progress.step == 6:
                signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    resumed = trainer(tmp_path / "b")
    assert resumed.resume() == 6
    list(resumed.run())
    assert_identical(weights(whole), weights(resumed))


def test_a_resume_with_other_parameters_is_refused_with_the_keys_that_differ(tmp_path):
    list(trainer(tmp_path).run())
    assert trainer(tmp_path).resume() == 12
    words = (
        r"checkpoint-0000000012\.safetensors belongs to a training with other parameters: "
        r"optimization\.learning_rate 0\.001 there, 0\.002 here; optimization\.ema 0\.9 there, 0\.8 here: restore them"
    )
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, learning_rate=2e-3, ema=0.8).resume()


def test_a_resume_on_other_images_is_refused(tmp_path):
    list(trainer(tmp_path).run())
    other = trainer(tmp_path)
    other.identity["inputs"] = {"train.arrow": "def", "neighbors.arrow": "ghi"}
    words = r'inputs\.train\.arrow "abc" there, "def" here; inputs\.neighbors\.arrow "nothing" there'
    with pytest.raises(InputError, match=words):
        other.resume()


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_bit_of_a_file_of_tensors_is_checked(tmp_path):
    """Header, names, shapes, padding, values and the digest itself; and every length that a cut can leave."""
    content = {"a": torch.arange(2.0), "b": torch.zeros(1, dtype=torch.uint8)}, {"step": 4}
    path = save_tensors(tmp_path / "x.safetensors", *content)
    whole = path.read_bytes()
    tensors, metadata = load_tensors(path)
    assert metadata == content[1]
    assert_identical(tensors, content[0])
    for bit in range(8 * len(whole)):
        flip(path, bit)
        with pytest.raises(DamagedError, match=r"x\.safetensors is damaged \(.*\): delete it and rerun its stage"):
            load_tensors(path)
        path.write_bytes(whole)
    for cut in (*(whole[:size] for size in range(len(whole))), whole + b"\0"):
        path.write_bytes(cut)
        with pytest.raises(DamagedError, match="is damaged"):
            load_tensors(path)


def test_checkpoints_rotate(tmp_path):
    list(trainer(tmp_path / "a").run())
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [
        "checkpoint-0000000008.safetensors",
        "checkpoint-0000000012.safetensors",
    ]
    list(trainer(tmp_path / "b", keep=1).run())
    assert len(list((tmp_path / "b").iterdir())) == 1


DAMAGE = {
    "flipped": lambda path: flip(path, 8 * path.stat().st_size - 77),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    whole = trainer(tmp_path)
    curve = list(whole.run())
    both = sorted(tmp_path.iterdir())
    for paths, reached in ((both[1:], 8), (both, 0)):
        for path in paths:
            DAMAGE[damage](path)
        again = trainer(tmp_path)
        assert again.resume() == reached
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(paths)
        for path, line in zip(paths, lines):
            assert line.startswith(f"warning: {path} is damaged (")
            assert line.endswith(": removed, the training resumes from an earlier step")
        list(again.run())
        assert again.rows == curve
        assert_identical(weights(whole), weights(again))


def test_a_bit_flipped_anywhere_in_the_newest_checkpoint_changes_no_weight(tmp_path, capsys):
    whole = trainer(tmp_path)
    list(whole.run())
    size = newest(tmp_path).stat().st_size
    for bit in torch.randint(8 * size, (6,), generator=torch.Generator().manual_seed(0)).tolist():
        flip(newest(tmp_path), bit)
        again = trainer(tmp_path)
        assert again.resume() == 8
        assert "checkpoint-0000000012.safetensors is damaged" in capsys.readouterr().err
        list(again.run())
        assert_identical(weights(whole), weights(again))


def test_files_that_a_killed_process_left_unfinished_are_removed(tmp_path):
    (tmp_path / ".checkpoint-0000000004.safetensors.abc.safetensors").write_bytes(b"half")
    trainer(tmp_path).resume()
    assert list(tmp_path.iterdir()) == []


def wrong_checkpoints(tensors, metadata):
    """What a file of another program, or of an edit by hand, may hold: {words of the refusal: (tensors, metadata)}."""
    first = next(name for name in tensors if name.startswith("network."))
    some = next(name for name in tensors if name.startswith("optimizer.3."))
    return {
        "Missing key": ({name: t for name, t in tensors.items() if name != first}, metadata),
        "size mismatch": ({**tensors, first: torch.zeros(3)}, metadata),
        "exp_avg": ({name: t for name, t in tensors.items() if name != some}, metadata),
        "exp_avg of parameter 3 has shape": ({**tensors, some: torch.zeros(1, 2, 3)}, metadata),
        "is not a checkpoint of a training": (tensors, {**metadata, "step": "twelve"}),
        "is not a checkpoint": (tensors, {}),
    }


def test_a_checkpoint_with_other_tensors_is_refused_in_one_line(tmp_path):
    list(trainer(tmp_path, steps=4).run())
    path = newest(tmp_path)
    for words, content in wrong_checkpoints(*load_tensors(path)).items():
        save_tensors(path, *content)
        with pytest.raises(InputError, match=rf"checkpoint-0000000004\.safetensors .*{words}.*remove it"):
            trainer(tmp_path, steps=4).resume()


def test_a_file_of_another_program_and_a_folder_for_a_file_are_named(tmp_path):
    for text in ("{broken", "[1]", "{}"):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"json": text})
        with pytest.raises(InputError, match=r"x\.safetensors is damaged \(it holds no digest of itself\): delete it"):
            load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read"):
        load_tensors(tmp_path)


def test_time_limit_ends_with_a_usable_model_and_a_checkpoint(tmp_path):
    run = trainer(tmp_path, max_seconds=1e-6)
    curve = list(run.run())
    assert run.training.step == 1
    assert [progress.step for progress in curve] == [1]
    again = trainer(tmp_path, max_seconds=1e-6)
    assert again.resume() == 1
    assert_identical(weights(run), weights(again))


def test_snapshots_come_at_their_steps_and_change_nothing(tmp_path):
    plain, watched = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    kept = []
    assert list(watched.run((1, 7, 12), lambda step: kept.append((step, watched.training.step)))) == list(plain.run())
    assert kept == [(1, 1), (7, 7), (12, 12)]
    assert_identical(weights(plain), weights(watched))
