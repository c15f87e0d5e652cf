"""A process that spools until it is killed: `python -m ...spooler ROOT` prints a number once it is kept."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from market_pipeline.bus.spool import Spool
from market_pipeline.settings import SpoolSettings
from market_pipeline_tests.bus.spool.records import record


async def main(root: Path) -> None:
    spool = Spool(root, "spooler", SpoolSettings(segment_bytes=64 * 1024, min_free_bytes=0))
    number = 0

    async def one() -> None:
        nonlocal number
        while True:
            number += 1
            mine = number
            await spool.append(record(mine, size=700))
            sys.stdout.write(f"{mine}\n")
            sys.stdout.flush()

    await asyncio.gather(*(one() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
