"""The Makefile, where it removes things or refuses to begin."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from market_pipeline.local import environment, passwords, ports
from market_pipeline.local.demo import DAYS, parts
from market_pipeline.local.layout import Home

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(ROOT / "Makefile"), *arguments, "VENV=venv"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a stack, a .env that holds a line of its user, and a program that stops the stack."""
    folder = tmp_path / "project"
    home = Home.at(folder / ".market_pipeline")
    home.create()
    (folder / ".env").write_text("EDITOR=vi\n")
    variables = environment.dagster_variables(home, ports.ensure_ports(home), passwords.ensure_passwords(home))
    environment.write_dotenv(folder, home, variables)
    program(folder, f'exec {sys.executable} -m market_pipeline.cli "$@"')
    return folder


def program(folder: Path, text: str) -> None:
    path = folder / "venv" / "bin" / "market-pipeline"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_clean_removes_this_folders_stack_and_no_line_of_the_user(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Home.at(tmp_path / "other")
    other.create()
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(other.root))
    said = make(project, "clean")
    assert said.returncode == 0, said.stderr
    assert "nothing to stop in" in said.stdout
    assert str(project / ".market_pipeline") in said.stdout
    assert sorted(path.name for path in project.iterdir()) == [".env"]
    assert (project / ".env").read_text() == "EDITOR=vi\n"
    assert other.run.exists()
    assert make(project, "clean").returncode == 0


@pytest.mark.parametrize("without", ["success", "program"])
def test_clean_removes_nothing_of_a_stack_that_it_could_not_stop(project: Path, without: str) -> None:
    before = (project / ".env").read_text()
    if without == "success":
        program(project, "exit 1")
    else:
        (project / "venv" / "bin" / "market-pipeline").unlink()
    assert make(project, "clean").returncode != 0
    assert (project / ".market_pipeline" / "secrets").is_dir()
    assert (project / ".env").read_text() == before
    assert (project / "venv").is_dir()


@pytest.mark.parametrize(
    ("version", "taken"), [("3, 10, 9", False), ("3, 11", True), ("3, 13, 7", True), ("3, 14", False)]
)
def test_the_versions_of_python_are_those_of_the_project(version: str, taken: bool, tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    python = tmp_path / "python"
    # It says that it is another version, and can do nothing but run a line.
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c '
        f'"import sys; sys.version_info = ({version}); exec(sys.argv[1])" "$2"\n'
    )
    python.chmod(0o755)
    said = make(tmp_path, "setup", f"PYTHON={python}")
    assert said.returncode != 0
    assert ("needs Python 3.11, 3.12 or 3.13" in said.stderr) is not taken, said.stderr
    assert ("venv module is incomplete" in said.stderr) is taken, said.stderr
    [required] = re.findall(r'requires-python = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert required == ">=3.11,<3.14"


def test_the_list_of_what_can_be_made_tells_what_the_demo_loads() -> None:
    [demo] = [line for line in make(ROOT, "help").stdout.splitlines() if line.startswith("demo")]
    assert f"{DAYS} days of 4 symbols and two recordings" in demo
    assert len(parts(datetime.now(UTC))) == 3
