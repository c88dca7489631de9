"""Files that the nodes of a cluster exchange through one place: a folder or bucket named by an fsspec URL.

Every file is stored under its sha256, so none is copied twice, an incomplete copy is never taken for a complete one,
and nodes need no common file system. Layout: URL/files/SHA256.
"""

import json
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

import fsspec

from pipeline.cache import SHARDS, input_digests
from pipeline.locks import locked
from stages.errors import InputError
from stages.files.artifacts import atomic_path, sha256_file, sha256_json
from stages.files.paths import LOCAL

CHUNK = 1 << 22
FETCHING = LOCAL / "fetching"
"""Holds the locks of files that are being fetched."""


def _differing(wanted: dict[Path, str]) -> list[Path]:
    """Return the files that are missing or have another content."""
    there = [path for path in wanted if path.is_file()]
    found = dict(zip(there, input_digests([str(path) for path in there], SHARDS, {})))
    return [path for path, digest in wanted.items() if found.get(path) != digest]


class SharedPlace:
    """A content-addressed store at an fsspec URL (file:///mnt/shared, s3://bucket/folder, gs://..., memory://...)."""

    def __init__(self, url: str) -> None:
        """Raises InputError if no installed package speaks the URL's protocol."""
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"execution.shared: {url}: {error}") from error

    def put(self, path: Path) -> str:
        """Store a file unless it is stored already; return its sha256."""
        digest = sha256_file(path)
        target = self._target(digest)
        if not (self._files.exists(target) and self._files.size(target) == path.stat().st_size):
            self._files.makedirs(f"{self._root}/files", exist_ok=True)
            # object stores show a file only when it is complete; in a folder the rename ensures that
            temporary = f"{target}.{uuid.uuid4().hex}.part"
            self._files.put_file(str(path), temporary)
            self._files.mv(temporary, target)
        return digest

    def get(self, digest: str, path: Path) -> None:
        """Fetch a stored file to `path`, atomically. Raises OSError if it is missing or damaged."""
        with atomic_path(path) as temporary:
            with self._files.open(self._target(digest), "rb") as source, temporary.open("wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
            if sha256_file(temporary) != digest:
                raise OSError(f"{self.url}: {digest} is damaged: delete it and run again")

    def put_tree(self, path: Path) -> dict[str, str]:
        """Store a file, or all files of a folder: relative path ("" for a file itself) -> sha256."""
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return {file.relative_to(path).as_posix(): self.put(file) for file in files}
        return {"": self.put(path)}

    def get_tree(self, tree: dict[str, str], path: Path, kept: Path | None = None) -> None:
        """Fetch a tree of `put_tree` to `path`; files that have the right content already stay.

        What was fetched is read once for its digest, which this folder remembers (stages.files.shard_cache); of several
        processes that want a file one fetches it. kept: a folder of files by their digest, from which those that other
        trees have fetched are linked.
        """
        wanted = {path / relative if relative else path: digest for relative, digest in tree.items()}
        for target in _differing(wanted):
            with locked(FETCHING / f"{sha256_json(str(target.absolute()))}.lock"):
                if _differing({target: wanted[target]}):
                    self._get_once(wanted[target], target, kept)

    def _get_once(self, digest: str, target: Path, kept: Path | None) -> None:
        if kept is None:
            return self.get(digest, target)
        own = kept / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept / f"{digest}.lock"):
            if _differing({own: digest}):
                self.get(digest, own)
            link = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            os.link(own, link)
        link.replace(target)

    def write_record(self, tree: dict[str, str]) -> None:
        """Record the tree of the place's newest state. A reader finds the previous record or this one, complete."""
        target = f"{self._root}/record.json"
        temporary = f"{target}.{uuid.uuid4().hex}.part"
        self._files.makedirs(self._root, exist_ok=True)
        self._files.pipe_file(temporary, json.dumps(tree, sort_keys=True).encode())
        self._files.mv(temporary, target)

    def read_record(self) -> dict[str, str] | None:
        """Return the tree that was recorded last, or None."""
        self._files.invalidate_cache()
        try:
            return json.loads(self._files.cat_file(f"{self._root}/record.json"))
        except FileNotFoundError:
            return None

    def keep(self, digests: Collection[str]) -> None:
        """Remove all other files. Only for a place with one writer: another may rely on the removed files."""
        self._files.invalidate_cache()
        for path in self._files.ls(f"{self._root}/files", detail=False):
            if path.rsplit("/", 1)[1] not in digests:
                self._files.rm_file(path)

    def clear(self) -> None:
        """Remove the place and its contents."""
        self._files.invalidate_cache()
        if self._files.exists(self._root):
            self._files.rm(self._root, recursive=True)

    def _target(self, digest: str) -> str:
        return f"{self._root}/files/{digest}"
