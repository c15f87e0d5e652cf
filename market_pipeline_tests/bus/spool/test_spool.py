"""The spool on a real disk: crashes, limits, a disk that is full, and two who want the same folder."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from market_pipeline.bus.spool import Spool, SpoolFolder, SpoolRecord, spool_status
from market_pipeline.bus.spool import writer as writer_module
from market_pipeline.bus.spool.disk import read_segment
from market_pipeline.bus.spool.folder import adoptable, segments_of
from market_pipeline.errors import SpoolError, SpoolFull
from market_pipeline.settings import SpoolSettings
from market_pipeline_tests.bus.spool.records import record
from market_pipeline_tests.servers import die_with_parent

MB = 1024 * 1024
QUICK = SpoolSettings(segment_bytes=64 * 1024, min_free_bytes=0)


def held(path: Path) -> list[int]:
    """The numbers of the records that a folder holds, in their order."""
    return [int(each.headers["N"]) for segment in segments_of(path) for each in read_segment(segment).records]


def the_folder(root: Path) -> Path:
    (path,) = root.iterdir()
    return path


async def until_full(spool: Spool, size: int) -> tuple[int, SpoolFull]:
    """Append until it refuses; return how many records it took, and its words."""
    for number in range(1000):
        try:
            await spool.append(record(number, size=size))
        except SpoolFull as error:
            return number, error
    raise AssertionError("it never refused")


async def test_records_are_kept_in_order_in_segments_and_seen_from_outside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "collector", QUICK)
    await asyncio.gather(*(spool.append(record(number, size=5000)) for number in range(100)))
    assert (spool.waiting, spool.holds("market.EURUSD.tick"), spool.holds("other")) == (100, True, False)
    folder = the_folder(tmp_path)
    assert held(folder) == list(range(100))
    (status,) = spool_status(tmp_path)
    assert (status.name, status.pid, status.records, status.bad) == ("collector", os.getpid(), 100, 0)
    assert status.bytes > 500_000
    assert status.oldest_age_s is not None
    assert (status.locked, status.adoptable) == (True, False)
    assert SpoolFolder.adopt(folder) is None
    await spool.close()
    (status,) = spool_status(tmp_path)
    assert (status.locked, status.adoptable, status.records) == (False, True, 100)
    assert status.segments >= 2
    (adopted,) = adoptable(tmp_path)
    for segment in adopted.segments():
        adopted.remove(segment)
    adopted.release()
    assert spool_status(tmp_path) == []


async def test_a_spool_that_was_never_used_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "idle", QUICK)
    await spool.close()
    assert not (tmp_path / "spool").exists()
    assert spool_status(tmp_path / "spool") == []


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_any_moment_nothing_that_was_acknowledged_is_lost(tmp_path: Path, attempt: int) -> None:
    rng = random.Random(attempt)
    process = subprocess.Popen(
        [sys.executable, "-m", "market_pipeline_tests.bus.spool.spooler", str(tmp_path)],
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    threading.Timer(rng.uniform(0.05, 0.4), process.kill).start()
    lines += process.stdout.readlines()
    process.wait(10)
    acknowledged = {int(line) for line in lines if line.endswith(b"\n")}
    assert len(acknowledged) > 20
    found = held(the_folder(tmp_path))
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))
    assert found == sorted(found)
    (status,) = spool_status(tmp_path)
    assert (status.adoptable, status.locked) == (True, False)


def test_of_many_who_adopt_exactly_one_gets_the_folder(tmp_path: Path) -> None:
    for _ in range(20):
        path = SpoolFolder.create(tmp_path, "dead").path  # forgotten without release: closed by nobody
        (path / "ready" / f"{1:012d}.seg").write_bytes(b"x")
        os.close(_descriptor_of(path / "lock"))
        start = threading.Barrier(8)

        def adopt(_: int, path: Path = path, start: threading.Barrier = start) -> SpoolFolder | None:
            start.wait()
            return SpoolFolder.adopt(path)

        with ThreadPoolExecutor(8) as threads:
            got = [each for each in threads.map(adopt, range(8)) if each is not None]
        assert len(got) == 1
        got[0].remove(got[0].segments()[0])
        got[0].release()
        assert not path.exists()


def _descriptor_of(path: Path) -> int:
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == str(path):
                return int(fd)
        except FileNotFoundError:
            continue
    raise AssertionError(path)


def test_making_folders_beside_those_who_clear_away_empty_ones(tmp_path: Path) -> None:
    done = threading.Event()

    def clear() -> None:
        while not done.is_set():
            assert list(adoptable(tmp_path)) == []

    with ThreadPoolExecutor(2) as threads:
        clearing = [threads.submit(clear) for _ in range(2)]
        try:
            for _ in range(60):
                folder = SpoolFolder.create(tmp_path, "new")
                assert (folder.path / "owner.json").exists()
                assert SpoolFolder.adopt(folder.path) is None
                folder.release()
        finally:
            done.set()
        for each in clearing:
            each.result()


async def test_at_its_limit_it_refuses_clearly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "load", SpoolSettings(max_bytes=10 * MB, min_free_bytes=0))
    number, refusal = await until_full(spool, 100_000)
    assert 95 < number < 105
    for said in (str(tmp_path), str(10 * MB), "spool.max_bytes", "NATS"):
        assert said in str(refusal)
    assert (spool.full, spool.waiting, spool.counters.refused) == (True, number, 1)
    # The limit is of all folders together.
    other = Spool(tmp_path, "other", SpoolSettings(max_bytes=10 * MB, min_free_bytes=0))
    with pytest.raises(SpoolFull):
        await other.append(record(0, size=200_000))
    await other.close()
    taken = spool.writer.next_to_drain()
    assert taken is not None
    assert held(taken[0].path)[0] == 0
    taken[0].remove(taken[1])
    await spool.append(record(number, size=100_000))
    assert not spool.full
    assert held(the_folder(tmp_path))[-1] == number
    await spool.close()


async def test_the_disk_keeps_what_is_left_to_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "load", SpoolSettings(min_free_bytes=1 << 60))
    with pytest.raises(SpoolFull, match=r"min_free_bytes.*MARKET_PIPELINE_SPOOL__MIN_FREE_BYTES"):
        await spool.append(record(1))
    assert spool.waiting == 0
    await spool.close()


async def test_a_disk_that_is_really_full_leaves_no_torn_state(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody else fills the disk between the look at it and the write.
    monkeypatch.setattr(writer_module, "require_room", lambda *_: None)
    spool = Spool(small_disk / "spool", "load", QUICK)
    number, refusal = await until_full(spool, 10_000)
    assert "no space left on device" in str(refusal)
    assert number > 50
    for _ in range(3):
        with pytest.raises(SpoolFull):
            await spool.append(record(9999, size=10_000))
    folder = the_folder(small_disk / "spool")
    assert held(folder) == list(range(number))
    assert all(read_segment(each).torn_at is None for each in segments_of(folder))
    taken = spool.writer.next_to_drain()
    assert taken is not None
    taken[0].remove(taken[1])
    await spool.append(record(number, size=10_000))
    assert held(folder)[-1] == number
    await spool.close()


@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate too"])
async def test_a_write_that_fails_costs_only_what_was_never_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = Spool(tmp_path, "load", QUICK)
    for number in range(3):
        await spool.append(record(number))

    class Failing:
        """The system, of which one call fails."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        def ftruncate(self, fd: int, size: int) -> None:
            if call == "ftruncate too":
                raise OSError(errno.EIO, "Input/output error")
            os.ftruncate(fd, size)

    def half(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    if call != "fsync":
        monkeypatch.setattr(writer_module, "write_all", half)
    monkeypatch.setattr(writer_module, "os", Failing())
    with pytest.raises(SpoolError) as failed:
        await spool.append(record(3))
    assert isinstance(failed.value, SpoolFull) == (call != "fsync")
    monkeypatch.undo()
    await spool.append(record(4))
    assert held(the_folder(tmp_path)) == [0, 1, 2, 4]
    assert spool.waiting == 4
    await spool.close()


async def test_waiting_records_share_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "load", QUICK)
    written: list[int] = []
    write = spool.writer.write

    def counting(records: Sequence[SpoolRecord]) -> None:
        written.append(len(records))
        time.sleep(0.05)
        write(records)

    monkeypatch.setattr(spool.writer, "write", counting)
    await asyncio.gather(*(spool.append(record(number)) for number in range(50)))
    assert sum(written) == 50
    assert len(written) <= 2
    await spool.close()
