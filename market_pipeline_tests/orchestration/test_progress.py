from dataclasses import dataclass

from market_pipeline.orchestration.progress import log_progress, progress_line


@dataclass(frozen=True)
class Look:
    phase: str = "loading"
    symbol: str = "EUR/USD"
    done_minutes: int = 1440 * 850
    total_minutes: int = 1440 * 1800
    rows: int = 1_204_000
    rows_per_second: float = 61_000.4
    seconds_left: float | None = 80.0


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


def test_the_line_names_rows_partitions_rate_and_time_left() -> None:
    assert progress_line(Look()) == (
        "loading EUR/USD: 1,204,000 rows, 850 of 1,800 partitions (47%), 61,000 rows/s, 1 min 20 s left"
    )
    assert progress_line(Look(seconds_left=7260)).endswith("2 h 1 min left")
    assert progress_line(Look(seconds_left=None)).endswith("rows/s")
    unknown = progress_line(Look(total_minutes=0, seconds_left=None))
    assert unknown == "loading EUR/USD: 1,204,000 rows, 61,000 rows/s"


def test_lines_are_spaced_and_the_last_is_never_lost() -> None:
    now = 0.0
    log = Log()
    report = log_progress(log, every=5.0, clock=lambda: now)
    for second in range(13):
        now = float(second)
        report(Look(done_minutes=second))
    assert len(log.lines) == 3  # at 0, 5 and 10 s
    report(Look(done_minutes=10, total_minutes=10))
    assert "(100%)" in log.lines[-1]


def test_an_unknown_total_does_not_make_every_line_the_last() -> None:
    log = Log()
    report = log_progress(log, every=5.0, clock=lambda: 1.0)
    for _ in range(5):
        report(Look(total_minutes=0))
    assert len(log.lines) == 1


def test_phases_do_not_silence_each_other() -> None:
    log = Log()
    report = log_progress(log, every=5.0, clock=lambda: 1.0)
    report(Look(phase="loading"))
    report(Look(phase="deriving"))
    assert [line.split()[0] for line in log.lines] == ["loading", "deriving"]
