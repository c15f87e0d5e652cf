"""A full spool that gives up its oldest records: what is told of them, and what becomes of them when that fails."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from market_pipeline.bus.spool import Spool, SpoolRecord
from market_pipeline.bus.spool.disk import read_segment
from market_pipeline.errors import SpoolFull
from market_pipeline.settings import SpoolSettings
from market_pipeline_tests.bus.spool.records import record
from market_pipeline_tests.bus.spool.test_spool import MB, QUICK, held, the_folder, until_full


async def test_the_oldest_goes_where_the_newest_counts_more_and_its_loss_is_told_in_its_place(tmp_path: Path) -> None:
    lost: list[int] = []

    def on_given_up(records: Sequence[SpoolRecord]) -> list[SpoolRecord]:
        numbers = [int(each.headers["N"]) for each in records]
        assert set(numbers) <= set(held(the_folder(tmp_path))), "not gone yet"
        lost.extend(numbers)
        return [record(-1 - len(lost), size=10)]

    settings = SpoolSettings(max_bytes=MB, segment_bytes=64 * 1024, min_free_bytes=0, full="oldest")
    spool = Spool(tmp_path, "ticks", settings, on_given_up)
    for number in range(300):
        await spool.append(record(number, size=10_000))
    kept = held(the_folder(tmp_path))
    told = [number for number in kept if number < 0]
    assert lost
    assert lost + kept[len(told) :] == list(range(300)), "what is told comes before what is left"
    assert told[-1] == -1 - len(lost)
    assert (spool.counters.given_up, spool.waiting) == (len(lost), len(kept))
    assert sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file()) <= MB
    # Without anybody to tell, nothing is given up.
    other = Spool(tmp_path, "history", settings)
    await until_full(other, 10_000)
    assert held(the_folder_of(tmp_path, spool)) == kept
    await other.close()
    await spool.close()


def the_folder_of(root: Path, spool: Spool) -> Path:
    assert spool.writer.folder is not None
    assert spool.writer.folder.parent == root
    return spool.writer.folder


def fill(disk: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}"], stderr=subprocess.DEVNULL)
    assert shutil.disk_usage(disk).free == 0


async def test_what_could_not_be_given_up_is_drained_in_its_turn(small_disk: Path) -> None:
    """No room is left even for the word that something is lost."""
    root = small_disk / "spool"
    spool = Spool(
        root, "ticks", QUICK.model_copy(update={"full": "oldest"}), lambda lost: [record(-len(lost), size=9000)]
    )
    kept = 20
    for number in range(kept):
        await spool.append(record(number, size=9000))
    fill(small_disk)
    for _ in range(2):
        with pytest.raises(SpoolFull):
            await spool.append(record(kept, size=9000))
    assert (spool.waiting, spool.counters.given_up) == (kept, 0)
    folder = the_folder(root)
    assert [each.name for each in folder.rglob("*.seg") if each.parent.name == "giving_up"] == []
    drained: list[int] = []
    while (taken := spool.writer.next_to_drain()) is not None:
        drained += [int(each.headers["N"]) for each in read_segment(taken[1]).records]
        taken[0].remove(taken[1])
    assert drained == list(range(kept))
    await spool.close()
