"""Every kind of source alike, and wrong specifications."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import tree_spec, write_shard, write_zip

from stages.errors import InputError
from stages.files.images import (
    image_table,
    write_images,
)
from stages.images.sources.open import open_source

STACK = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The values 0..20 through every kind of source."""
    root = tmp_path_factory.mktemp("many")
    tree = {f"{value:03d}.png": value for value in range(21)}
    write_shard(root / "p" / "1.parquet", 9, 12, row_group_size=5)
    write_shard(root / "p" / "0.parquet", 0, 9)
    stack = np.broadcast_to(np.arange(21, dtype=np.uint8)[:, None, None, None], (21, 4, 4, 1))
    np.savez_compressed(root / "a.npz", stack)
    np.save(root / "a.npy", stack)
    write_images(root / "a.arrow", image_table(np.ascontiguousarray(stack)))
    trees = [tree_spec(kind, root, tree) for kind in ("folder", "zip")]
    return [
        *trees,
        f"parquet:{root / 'p'}",
        f"npz:{root / 'a.npz'}",
        f"npz:{root / 'a.npy'}",
        f"arrow:{root / 'a.arrow'}",
    ]


@settings(max_examples=25, deadline=None)
@given(rows=st.sets(st.integers(0, 20)))
def test_any_rows_are_those_of_the_whole(many: list[str], rows: set[int]) -> None:
    for spec in many:
        source = open_source(spec)
        assert len(source) == 21
        items = list(source.read(sorted(rows)))
        assert [item.row for item in items] == sorted(rows)
        assert [item.image.convert("L").getpixel((0, 0)) for item in items] == sorted(rows)
        assert set(source.files(sorted(rows))) <= set(source.files(range(21)))


@pytest.mark.parametrize("rows", [[1, 0], [2, 2], [-1, 0], [20, 21]])
def test_rows_must_ascend_within_the_source(many: list[str], rows: list[int]) -> None:
    for spec in many:
        with pytest.raises(ValueError, match="ascend"):
            list(open_source(spec).read(rows))


def spoiled(folder: Path) -> dict[str, tuple[str, str]]:
    """Wrong specifications and what their message must say."""
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("text")
    for name in ("text.zip", "text.parquet", "text.npz", "text.npy", "text.arrow"):
        (folder / name).write_text("text")
    write_zip(folder / "none.zip", {})
    pq.write_table(pa.table({"picture": pa.array([b"x"]), "label": ["a"]}), folder / "other.parquet")
    pq.write_table(pa.table({"image": ["x"]}), folder / "text-column.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "rows.parquet")
    (folder / "mixed").mkdir()
    write_shard(folder / "mixed" / "a.parquet", 0, 2)
    write_shard(folder / "mixed" / "b.parquet", 0, 2, pa.binary())
    np.savez(folder / "key.npz", other=STACK)
    np.savez(folder / "float.npz", STACK / 255)
    np.savez(folder / "shape.npz", STACK.transpose(0, 3, 1, 2))
    np.savez(folder / "fortran.npz", np.asfortranarray(STACK))
    np.savez(folder / "object.npz", np.array([{}], object))
    np.savez(folder / "labels.npz", STACK, labels=np.arange(3))
    np.savez(folder / "pickled.npz", STACK, labels=np.array([{}] * 7, object))
    np.save(folder / "object.npy", np.array([{}], object))
    return {
        "imagenet": ("", "unknown image source"),
        f"{folder}/empty": ("", "did you mean folder:"),
        "folder:": ("", "does not have the form folder:PATH"),
        "folder": ("", "does not have the form folder:PATH"),
        "mnist5k:x": ("", "does not have the form mnist5k"),
        f"folder:{folder}/missing": ("missing", "does not exist"),
        f"folder:{folder}/empty": ("empty", "holds no images"),
        f"folder:{folder}/text.txt": ("text.txt", "is not a folder"),
        f"folder:{folder}/text.zip": ("text.zip", "use zip:"),
        f"folder:{folder}/empty?part=train": ("split", "unknown option"),
        f"zip:{folder}/missing.zip": ("missing.zip", "does not exist"),
        f"zip:{folder}/text.zip": ("text.zip", "not a readable zip"),
        f"zip:{folder}/none.zip": ("none.zip", "holds no images"),
        f"parquet:{folder}/*.nothing": ("nothing", "no file matches"),
        f"parquet:{folder}/empty": ("empty", "no \\*.parquet"),
        f"parquet:{folder}/text.parquet": ("text.parquet", "not a readable Parquet"),
        f"parquet:{folder}/other.parquet": ("other.parquet", "no column 'image', only picture, label"),
        f"parquet:{folder}/other.parquet?image=x": ("other.parquet", "no column 'x'"),
        f"parquet:{folder}/other.parquet?image=picture&label=label": ("label", "not an integer"),
        f"parquet:{folder}/mixed/a.parquet?label=x": ("a.parquet", "no column 'x'"),
        f"parquet:{folder}/text-column.parquet": ("string", "not struct"),
        f"parquet:{folder}/rows.parquet": ("rows.parquet", "holds no images"),
        f"parquet:{folder}/mixed": ("b.parquet", "other columns"),
        f"npz:{folder}/text.npz": ("text.npz", "not a readable .npz"),
        f"npz:{folder}/text.npy": ("text.npy", "not a readable .npy"),
        f"npz:{folder}/key.npz": ("arr_0 or images", "only other"),
        f"npz:{folder}/float.npz": ("float64", "uint8"),
        f"npz:{folder}/shape.npz": ("(7, 3, 5, 6)", "\\(N, H, W, C\\)"),
        f"npz:{folder}/fortran.npz": ("fortran.npz", "ascontiguousarray"),
        f"npz:{folder}/object.npz": ("object", "uint8"),
        f"npz:{folder}/object.npy": ("object.npy", "not a readable"),
        f"npz:{folder}/labels.npz?labels=labels": ("labels", "must be 7 integers"),
        f"npz:{folder}/pickled.npz?labels=labels": ("labels", "without pickle"),
        f"npz:{folder}/object.npy?images=x": ("object.npy", "no keys"),
        f"arrow:{folder}/text.arrow": ("text.arrow", "not an Arrow image table"),
    }


def test_wrong_input_is_one_clear_line(tmp_path: Path) -> None:
    for spec, (names, says) in spoiled(tmp_path).items():
        with pytest.raises(InputError, match=says) as caught:
            open_source(spec)
        assert names in str(caught.value), spec
        assert "\n" not in str(caught.value), spec
