"""What the project installs, pins and runs in containers."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from full_disks import mounted
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def asked(lines: list[str], extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """The packages, each with its extras, that these requirements name for this interpreter."""
    return {
        (canonicalize_name(one.name), frozenset(one.extras))
        for one in map(Requirement, lines)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    }


def test_every_package_is_pinned_to_the_version_that_is_installed():
    """Whoever looks the pins up (pip-audit) sees all that runs. An extra that is absent is followed no further."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = asked(sum(project["optional-dependencies"].values(), project["dependencies"]))
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            new = asked(metadata.requires(name) or [], extras) - seen
            assert metadata.version(name) == pins[name], name
        except metadata.PackageNotFoundError:
            continue
        seen |= new
        waiting |= new
    names = {name for name, _ in seen}
    assert {"torch", "ray", "alembic"} <= names
    assert names - pins.keys() == set()


def test_the_containers_do_what_the_readme_says_and_publish_on_loopback_only():
    readme, guide = (ROOT / "README.md").read_text(), (ROOT / "docs" / "operations.md").read_text()
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"docker compose run --rm worker (make (\w+))", guide)
    assert [command for command, _ in commands] == ["make repro", "make test"]
    for command, target in commands:
        assert f"\n    {command} " in readme
        assert target in targets
    image = (ROOT / "Dockerfile").read_text()
    assert image.rstrip().endswith('CMD ["make", "repro"]')
    assert "\nUSER 10001\n" in image  # not root
    assert re.search("^ENV .* USER=", image, re.MULTILINE)  # a user of the host has no name in the image
    assert re.search("^ENV .* PWD=/project ", image, re.MULTILINE)  # prefect.yaml takes it, and only a shell sets it
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["database", "server", "worker"]
    worker = services["worker"]
    assert worker["volumes"] == [".:/project"]
    assert image.count("\nWORKDIR /project\n") == 1
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"COPY [^ ]+ (.+) \./", image)[0].split()
    assert {line[1:] for line in kept if line.startswith("!")} == set(copied)
    assert services["server"]["environment"]["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert not any("CSRF" in name for name in worker["environment"])  # Prefect's clients send the token by default
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:4200:4200"]
    deployment = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    assert deployment["work_pool"]["name"] in services["worker"]["command"]


def make(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    command = ["make", f"VENV={folder / 'venv'}", target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_containers_environment_counts_by_its_pins_and_not_by_time(tmp_path):
    """A clone can be newer than the image, whose build keeps a layer as long as the files' contents are the same."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    with mounted(tmp_path / "venv", "size=4m") as venv:
        (venv / "bin").mkdir()
        (venv / "bin" / "python").write_text('#!/bin/sh\necho "$@" >> ../asked\n'.replace("..", str(tmp_path)))
        (venv / "bin" / "python").chmod(0o755)
        done = make(tmp_path, str(venv / ".installed-test"))
        assert done.returncode == 0, done.stderr
        asked = (tmp_path / "asked").read_text()
        assert asked.splitlines()[-1].endswith("-c constraints.txt -e .[pipeline,test]")
        subprocess.run(["mount", "-o", "remount,ro", str(venv)], check=True)
        for target in (".installed", ".installed-test"):
            os.utime(tmp_path / "pyproject.toml")
            assert make(tmp_path, str(venv / target)).returncode == 0
        (tmp_path / "constraints.txt").write_text("numpy==1\n")
        done = make(tmp_path, str(venv / ".installed-test"))
        assert done.returncode == 2
        assert "has other pins than pyproject.toml or constraints.txt: docker compose build\n" in done.stderr
        assert (tmp_path / "asked").read_text() == asked
