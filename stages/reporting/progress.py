"""A progress bar over a whole command, in estimated seconds of work."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class SecondsBar:
    """A bar with the time that is left; where there is no terminal, one line per step."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("reading", total=1.0)
        self.known = self.done = 0.0
        self._step = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the bar within."""
        with self.bar:
            yield

    def expect(self, seconds: float) -> None:
        """Add estimated seconds of work that lie ahead."""
        self.known += seconds
        self.bar.update(self.task, total=self.known)

    def step(self, words: str) -> None:
        """Say what is done now; the same words again change nothing."""
        if words != self._step:
            self._step = words
            self.bar.update(self.task, description=words)
            if not self.console.is_terminal:
                self.say(words)

    def advance(self, seconds: float) -> None:
        """Count estimated seconds of work as done; the total grows with what was not expected."""
        self.done += seconds
        self.expect(max(0.0, self.done - self.known))
        self.bar.update(self.task, completed=self.done)

    def finish(self) -> None:
        """Show that everything is done."""
        self.known = self.done
        self.bar.update(self.task, total=self.done)

    def say(self, words: str) -> None:
        """Print a line that stays."""
        self.console.print(words, highlight=False)
