"""Two hundred rounds of random faults end with the outs of an undisturbed run. See chaos.py."""

import os
from pathlib import Path

import pytest
from chaos import chaos

pytestmark = [pytest.mark.faults, pytest.mark.long]

ROUNDS = int(os.environ.get("SCORESMOOTH_CHAOS_ROUNDS", "200"))


def test_random_faults_change_no_byte_and_leave_nothing_behind(tmp_path):
    if os.getuid() != 0:
        pytest.skip("mounting the disks that fill up needs root")
    log = Path(os.environ.get("SCORESMOOTH_CHAOS_LOG", tmp_path / "chaos.jsonl"))
    with log.open("w", buffering=1) as file:
        tally = chaos(tmp_path / "arenas", ROUNDS, 0, float("inf"), lambda line: file.write(line + "\n"))
    assert tally.rounds == ROUNDS
    assert tally.good, tally.summary()
