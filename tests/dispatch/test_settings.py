"""What the project changes in Prefect's settings, and how little that costs a stage."""

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

from pipeline import server

ROOT = Path(__file__).parents[2]

HEARTBEATS = """
import json
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings
from pipeline.heartbeats import _without_prefects_own
before = get_current_settings().model_dump(mode="json")
with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
    theirs = get_current_settings().model_dump(mode="json")
with _without_prefects_own():
    ours = get_current_settings().model_dump(mode="json")
after = get_current_settings().model_dump(mode="json")
print(json.dumps([before, theirs, ours, after]))
"""

CERTIFICATES = """
from prefect import get_client
with get_client(sync_client=True) as client:
    print(client._client._transport._pool._ssl_context.cert_store_stats()["x509"])
"""


def run(code: str, home: Path, **variables: str) -> str:
    environment = {**os.environ, **variables, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, check=True, timeout=240
    ).stdout


def test_the_settings_without_heartbeats_are_those_that_prefect_makes(tmp_path):
    user = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "77", "PREFECT_TASKS_DEFAULT_RETRIES": "3"}
    before, theirs, ours, after = json.loads(run(HEARTBEATS, tmp_path, **user))
    assert (before["flows"]["heartbeat_frequency"], before["tasks"]["default_retries"]) == (77, 3)
    assert ours == theirs
    assert ours == {**before, "flows": {**before["flows"], "heartbeat_frequency": None}}
    assert after == before


def test_a_client_of_the_projects_server_reads_one_certificate(tmp_path, monkeypatch):
    """Each of Prefect's clients reads all of them otherwise."""
    monkeypatch.setattr(server, "HOME", tmp_path / "home")
    variables = {**server.environment(), "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    assert run(CERTIFICATES, tmp_path, **variables) == "1\n"
    assert ssl.create_default_context(cafile=server.NO_CERTIFICATES).cert_store_stats()["x509_ca"] == 1
