"""The pipeline's shard cache: stages.files.shard_cache under the name that the dispatch uses."""

from stages.files.shard_cache import (
    SHARDS,
    Check,
    State,
    check,
    input_digest,
    input_digests,
    manifest_path,
    obtain,
    place,
    prune,
    size,
)

__all__ = [
    "SHARDS",
    "Check",
    "State",
    "check",
    "input_digest",
    "input_digests",
    "manifest_path",
    "obtain",
    "place",
    "prune",
    "size",
]
