"""The page of an audit. A package of its own, so that an edit of it makes no stage of the pipeline stale."""
