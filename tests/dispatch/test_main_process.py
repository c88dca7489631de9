"""The command line's process: Ctrl-C at its start prints no traceback, and at its end nothing is lost."""

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
    code, printed = run("import pipeline.main_process\nraise RuntimeError('broken')")
    assert code == 1
    assert "Traceback" in printed
    assert "RuntimeError: broken" in printed


@pytest.mark.parametrize(
    ("code", "expected", "said"), [("0", 0, ""), ("None", 0, ""), ("3", 3, ""), ("'why'", 1, "why\n")]
)
def test_at_the_end_files_are_written_and_functions_called(code, expected, said, tmp_path):
    """Threads end first, then what was registered is called."""
    path = tmp_path / "log"
    found, printed = run(f"""
import atexit, threading, time
from pipeline.main_process import end_with
out = open({str(path)!r}, "w")
atexit.register(lambda: print("registered", file=out, flush=True))
threading.Thread(target=lambda: (time.sleep(0.3), print("thread", file=out))).start()
end_with({code})
""")
    assert (found, printed) == (expected, said)
    assert path.read_text().splitlines() == ["thread", "registered"]
