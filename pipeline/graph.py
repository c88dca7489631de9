"""The graph of DVC stages, read through DVC itself: which stage depends on which, and which have changed."""

import functools
import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import networkx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import Stage
from dvc.utils.serialize import LOADERS, load_yaml

from pipeline import dag
from stages.errors import InputError


class StageGraph:
    """The stages that some targets of dvc.yaml need, in an order that respects their dependencies.

    Attributes:
        names: the stages' names ("sample@closed-kernel"), upstream before downstream.
        changed_first: those that had changed when the graph was read.
        upstream: name -> names of the stages that it directly depends on.
        downstream: the reverse.
    """

    def __init__(self, targets: Iterable[str] = ()) -> None:
        """Read dvc.yaml. No targets: all stages. Raises InputError for an unknown target or outside a DVC project."""
        self._guard = threading.Lock()
        try:
            self._repo = Repo(_wait_for_lock=True)
            with lock_repo(self._repo), _parameters_parsed_once():
                whole = get_active_graph(self._repo.index.graph)
                wanted = collect_stages(self._repo, list(targets)) if targets else list(self._repo.index.stages)
                stages = list(dict.fromkeys(plan_repro(whole, wanted)))
                self.changed_first = _changed(stages)  # here: without the lock DVC would read all its files anew
        except DvcException as error:
            raise InputError(f"dvc: {' '.join(str(error).split())}") from error
        kept = {stage.addressing for stage in stages}
        edges = [(one.addressing, other.addressing) for one, other in whole.edges if one.addressing in kept]
        self.names = tuple(stage.addressing for stage in stages)
        self.upstream = {name: frozenset(below for above, below in edges if above == name) for name in self.names}
        self.downstream = {name: frozenset(above for above, below in edges if below == name) for name in self.names}

    def changed(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that `dvc repro --single-item NAME` would run. Waits for other DVC commands; thread-safe.

        A stage that another DVC process is writing counts as changed.
        """
        with self._guard, lock_repo(self._repo), _parameters_parsed_once():
            wanted = set(names)
            return _changed(stage for stage in self._repo.index.stages if stage.addressing in wanted)

    def planned(self, changed: set[str]) -> list[str]:
        """A line for each stage that would run, or would run if a stage before it writes something new.

        `changed` are the changed stages. All stages depend on the stage `code`, but each only by its own list of files,
        and what `code` will write there is known before it runs.
        """
        run = changed | (self._with_new_code() if dag.CODE_STAGE in changed else set())
        perhaps = self.below(run - {dag.CODE_STAGE}) - run
        lines = {name: name for name in run} | {name: f"{name} (if what it depends on changes)" for name in perhaps}
        return [lines[name] for name in self.names if name in lines]

    def _with_new_code(self) -> set[str]:
        """The stages that last ran with other code than there is now."""
        texts = {str(path.absolute()): text for path, text in dag.code_lists().items()}
        digests = {path: hashlib.md5(text.encode()).hexdigest() for path, text in texts.items()}
        return {
            stage.addressing
            for stage in self._repo.index.stages
            for dep in stage.deps
            if stage.addressing in self.names and digests.get(dep.fs_path) not in (None, dep.hash_info.value)
        }

    def below(self, names: Iterable[str]) -> set[str]:
        """`names` and everything that depends on them, directly or not."""
        graph = networkx.DiGraph((above, below) for above, found in self.downstream.items() for below in found)
        graph.add_nodes_from(self.names)
        start = set(names)
        return start.union(*(networkx.descendants(graph, name) for name in start))

    def depth(self, name: str) -> int:
        """The number of stages on the longest path from this one to the end of the graph: the deepest start first."""
        return 1 + max((self.depth(other) for other in self.downstream[name]), default=0)


def _changed(stages: Iterable[Stage]) -> set[str]:
    return {stage.addressing for stage in stages if _has_changed(stage)}


def _has_changed(stage: Stage) -> bool:
    try:
        return stage.changed()
    except LockError:
        return True


@contextmanager
def _parameters_parsed_once() -> Iterator[None]:
    """DVC parses params.yaml once for every stage that it compares: a fifth of a check. It changes no value in it."""
    LOADERS[".yaml"] = functools.cache(load_yaml)
    try:
        yield
    finally:
        del LOADERS[".yaml"]
