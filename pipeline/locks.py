"""Locks of the dispatch: stages.files.locks under the name that the dispatch uses."""

from stages.files.locks import is_locked, locked, name_holder

__all__ = ["is_locked", "locked", "name_holder"]
