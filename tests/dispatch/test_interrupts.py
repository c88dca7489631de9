"""Ctrl-C at any moment of the command line's start prints no traceback; other errors keep theirs."""

import signal
import subprocess
import sys

import pytest
from small_project import ROOT, hear_interrupts


def run(code: str) -> tuple[int, str]:
    command = [sys.executable, "-c", f"import os, signal, sys\n{code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=hear_interrupts)
    return done.returncode, done.stderr


ENDED = (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.parametrize("module", ["typer", "pipeline.processes", "stages.errors"])
def test_an_interrupt_while_the_command_line_is_imported(module):
    """The module is one that the command line imports; looking for it interrupts the process."""
    finder = f"""
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
import pipeline.cli
"""
    code, printed = run(finder)
    assert code in ENDED
    assert printed == "interrupted\n"


def test_other_errors_keep_their_traceback():
    code, printed = run("import pipeline.interrupts\nraise RuntimeError('broken')")
    assert code == 1
    assert "Traceback" in printed
    assert "RuntimeError: broken" in printed
