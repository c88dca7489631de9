"""Two hundred rounds of random faults end with the outs of an undisturbed run. See chaos.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import chaos
from crowding import Process
from small_project import ROOT, hear_interrupts
from watching import until, workers

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("SCORESMOOTH_CHAOS_ROUNDS", "200"))


def mounts(folder: Path) -> list[str]:
    """Where disks are mounted below a folder."""
    places = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    return [place for place in places if Path(place).is_relative_to(folder)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_driver_leaves_no_disk_process_or_folder_when_it_is_ended(tmp_path, number):
    if os.getuid() != 0:
        pytest.skip("mounting the disks that fill up needs root")
    place = tmp_path / "temporary"
    place.mkdir()
    paths = os.pathsep.join(str(ROOT / path) for path in ("", "tests/support", "tests/faults"))
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": paths}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")  # torch makes it and leaves it
    command = [sys.executable, "-m", "chaos", "--jobs", "2", "--log", str(tmp_path / "log")]
    driver = Process(command, cwd=ROOT, env=environment, preexec_fn=hear_interrupts)
    try:
        until(lambda: mounts(place) and workers(place))
        driver.send_signal(number)
        assert driver.wait(timeout=60) == 128 + number
        assert mounts(place) == []
        assert workers(place) == []
        assert list(place.iterdir()) == []
    finally:
        driver.kill()
        for left in mounts(place):
            subprocess.run(["umount", "--lazy", left], check=True)


@pytest.mark.long
def test_random_faults_change_no_byte_and_leave_nothing_behind(tmp_path):
    if os.getuid() != 0:
        pytest.skip("mounting the disks that fill up needs root")
    log = Path(os.environ.get("SCORESMOOTH_CHAOS_LOG", tmp_path / "chaos.jsonl"))
    with log.open("w", buffering=1) as file:
        tally = chaos(tmp_path / "arenas", ROUNDS, 0, float("inf"), lambda line: file.write(line + "\n"))
    assert tally.rounds == ROUNDS
    assert tally.good, tally.summary()
