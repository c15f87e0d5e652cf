"""The stack runs as root and as an ordinary user; as root, PostgreSQL drops its rights (test_stack.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from market_pipeline.local.processes import Launch

NOBODY = 65534
_SCRIPT = """
import os, sys
from pathlib import Path
from market_pipeline.local.stack import Stack
from market_pipeline_tests.local.clients import read_everywhere, write_everywhere
assert os.geteuid() != 0
with Stack(Path(sys.argv[1]), ("nats", "postgres", "clickhouse"), die_with_parent=True) as stack:
    sequence = write_everywhere(stack.settings, 7)
    assert read_everywhere(stack.settings, sequence) == ([7], [7], b"7")
print("done")
"""


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="market-pipeline-user-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: every other test here already runs as an ordinary user")
def test_an_ordinary_user_runs_the_stack(folder_of_nobody: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    # The interpreter may lie below a folder that only root may enter: the right to read there is all that is kept.
    launch = Launch(
        [sys.executable, "-c", _SCRIPT, str(folder_of_nobody / "home")], root, user=(NOBODY, NOBODY), pass_parents=True
    )
    result = subprocess.run(
        launch.wrapped(die_with_parent=False),
        cwd=launch.cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(folder_of_nobody), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
    assert {path.stat().st_uid for path in (folder_of_nobody / "home").rglob("*")} == {NOBODY}
