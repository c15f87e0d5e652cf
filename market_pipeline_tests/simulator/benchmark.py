"""Measure the simulator: `python -m market_pipeline_tests.simulator.benchmark`, about fifteen seconds."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from market_pipeline.simulator import truth
from market_pipeline.simulator.server import SimulatorProcess, start
from market_pipeline.simulator.sessions import DAY_MS

_START = 1_577_836_800_000  # 2020-01-01
_SECONDS = 4.0


def main() -> None:
    """Print minutes generated a second, the time of one page, and bars served a second."""
    for ticker in ("C:GBPUSD", "X:SOLUSD", "AAPL"):
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            bars = truth.minute_bars(ticker, _START, _START + 1_000 * DAY_MS)
            rates.append(len(bars) / (time.perf_counter() - began) / 1e6)
        print(f"generated {ticker}: {max(rates):.1f} million minutes/s, the best of three")
    with start() as simulator:
        for clients in (1, 2):
            with ThreadPoolExecutor(clients) as pool:
                served = list(pool.map(lambda n: _download(simulator, n), range(clients)))
            rows, pages = (sum(column) for column in zip(*served, strict=True))
            print(
                f"{clients} client(s): {rows / _SECONDS / 1000:.0f} thousand bars/s in pages of 50,000, "
                f"{_SECONDS * clients / pages * 1000:.0f} ms a page"
            )


def _download(simulator: SimulatorProcess, number: int) -> tuple[int, int]:
    rows = pages = 0
    headers = {"Authorization": f"Bearer {simulator.api_key}"}
    with httpx.Client(base_url=simulator.base_url, headers=headers, trust_env=False) as client:
        until = time.perf_counter() + _SECONDS
        while time.perf_counter() < until:
            first = _START + (pages * 2 + number) % 60 * 30 * DAY_MS
            path = f"/v2/aggs/ticker/X:ETHUSD/range/1/minute/{first}/{first + 50_000 * 60_000 - 1}"
            answer = client.get(path, params={"limit": 50_000})
            # The count in the head: to decode the page would measure this client.
            rows += int(answer.content[:120].split(b'"resultsCount":')[1].split(b",")[0])
            pages += 1
    return rows, pages


if __name__ == "__main__":
    main()
