"""A spool of which something cannot be read: nobody waits for ever, and what is no part of it is left alone."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from market_pipeline.bus.spool import Spool, SpoolFolder, SpoolRecord, spool_status
from market_pipeline.bus.spool.folder import adoptable, left_behind, segments_of
from market_pipeline.errors import SpoolError, SpoolFull
from market_pipeline.file_locks import is_held
from market_pipeline.settings import SpoolSettings
from market_pipeline_tests.bus.spool.records import record
from market_pipeline_tests.bus.spool.test_spool import QUICK, held, the_folder

NOBODY = 65534
WAIT_S = 10.0


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Make a spool's folder with a `lost+found` that only root may read, and be somebody else while it is open."""
    with tempfile.TemporaryDirectory(prefix="spool-test-") as folder:
        root = Path(folder)
        (root / "lost+found").mkdir(mode=0o700)
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(root, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        else:
            (root / "lost+found").chmod(0)
        try:
            yield root
        finally:
            if is_root:
                os.seteuid(0)
            (root / "lost+found").chmod(0o700)


async def append(spool: Spool, number: int) -> None:
    async with asyncio.timeout(WAIT_S):
        await spool.append(record(number))


async def test_a_disk_of_its_own_has_a_folder_that_is_not_the_spools() -> None:
    with unprivileged() as root:
        with pytest.raises(PermissionError):
            os.listdir(root / "lost+found")
        spool = Spool(root, "collector", QUICK)
        await append(spool, 1)
        (status,) = spool_status(root)
        assert (status.name, status.records, status.locked) == ("collector", 1, True)
        await spool.close()
        (adopted,) = adoptable(root)
        assert held(adopted.path) == [1]
        adopted.remove(adopted.segments()[0])
        adopted.release()
        assert [each.name for each in root.iterdir()] == ["lost+found"]


def test_what_lies_beside_the_folders_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    assert list(adoptable(tmp_path)) == []
    assert (tmp_path / "documents" / "mine").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["documents", "empty", "mine"]
    assert spool_status(tmp_path) == []


async def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for number in range(3):
        dead = Spool(tmp_path, f"dead {number}", QUICK)
        await append(dead, number)
        assert dead.writer.folder is not None
        paths.append(dead.writer.folder)
        await dead.close()
    broken = paths[1]
    failing(monkeypatch, "listdir", broken / "ready")
    assert sorted(each.path for each in adoptable(tmp_path)) == sorted({*paths} - {broken})
    found = {each.path: each for each in spool_status(tmp_path)}
    assert [path for path, each in found.items() if each.error] == [broken]
    assert (found[broken].name, found[broken].records) == ("dead 1", 0)
    assert "input/output error" in found[broken].error
    with pytest.raises(SpoolError):
        left_behind(broken)
    # It does not count either: the limit of all folders is no reason to keep nothing any more.
    failing(monkeypatch, "scandir", broken)
    spool = Spool(tmp_path, "next", QUICK)
    await append(spool, 9)
    await spool.close()


def failing(monkeypatch: pytest.MonkeyPatch, call: str, path: Path) -> None:
    """Let a call to the system fail for one path as a broken disk does; a test cannot have one."""
    original = getattr(os, call)

    def fails(where: Any = ".") -> Any:
        if str(where) == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return original(where)

    monkeypatch.setattr(os, call, fails)


@pytest.mark.parametrize("call", ["statvfs", "scandir"])
async def test_a_disk_that_does_not_answer_is_an_error_for_everybody_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = Spool(tmp_path, "load", QUICK)
    await append(spool, 0)
    with monkeypatch.context() as patch:
        failing(patch, call, tmp_path)
        async with asyncio.timeout(WAIT_S):
            outcomes = await asyncio.gather(*(spool.append(record(n)) for n in range(1, 5)), return_exceptions=True)
        assert [type(each) for each in outcomes] == [SpoolError] * 4
        assert "input/output error" in str(outcomes[0])
        assert (spool.waiting, spool.counters.refused) == (1, 4)
    await append(spool, 5)
    assert spool.writer.folder is not None
    assert held(spool.writer.folder) == [0, 5]
    await spool.close()


async def test_an_error_nobody_thought_of_is_one_for_everybody_who_waits(tmp_path: Path) -> None:
    def on_given_up(records: Sequence[SpoolRecord]) -> list[SpoolRecord]:
        raise LookupError("a bug")

    settings = SpoolSettings(max_bytes=1024**2, segment_bytes=64 * 1024, min_free_bytes=0, full="oldest")
    spool = Spool(tmp_path, "ticks", settings, on_given_up)
    while sum(each.bytes for each in spool_status(tmp_path)) < settings.max_bytes - 20_000:
        await spool.append(record(1, size=10_000))
    kept = spool.waiting
    async with asyncio.timeout(WAIT_S):
        outcomes = await asyncio.gather(
            *(spool.append(record(2, size=50_000)) for _ in range(3)), return_exceptions=True
        )
    assert [type(each) for each in outcomes] == [LookupError] * 3
    assert spool.waiting == kept
    await spool.close()


async def test_the_draining_of_a_spool_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "load", QUICK)
    await append(spool, 0)
    assert spool.writer.folder is not None
    (segment,) = segments_of(spool.writer.folder)
    failing(monkeypatch, "listdir", spool.writer.folder / "ready")
    for call in (spool.writer.next_to_drain, spool.writer.next_to_give_up):
        with pytest.raises(SpoolError, match="input/output error") as failed:
            call()
        assert not isinstance(failed.value, SpoolFull)
    assert segment.exists()
    await spool.close()


async def test_a_folder_that_cannot_be_taken_over_is_not_locked_by_the_attempt(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "dead", QUICK)
    await append(dead, 1)
    path = the_folder(tmp_path)
    await dead.close()
    (path / "adopted").symlink_to(tmp_path / "nowhere" / "file")  # no file can be made there
    for _ in range(2):
        with pytest.raises(SpoolError):
            SpoolFolder.adopt(path)
        assert list(adoptable(tmp_path)) == []
        assert not is_held(path / "lock")
    (path / "adopted").unlink()
    (adopted,) = adoptable(tmp_path)
    assert held(path) == [1]
    adopted.release()


async def test_a_folder_whose_last_segment_cannot_be_ended_is_given_up_all_the_same(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "load", QUICK)
    await append(spool, 1)
    path = the_folder(tmp_path)
    (path / "ready").rmdir()
    (path / "ready").touch()
    with pytest.raises(SpoolError):
        await spool.close()
    assert not is_held(path / "lock")
    (adopted,) = adoptable(tmp_path)
    assert held(path) == [1], "it can be read where it is"
    adopted.release()
