"""The read API and its commands, over real rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import typer
from click.testing import Result
from pydantic import SecretStr
from typer.testing import CliRunner

from market_pipeline import read
from market_pipeline.cli.bars import register
from market_pipeline.errors import BadRange, InstrumentsFileError, StoreUnreachable, UnknownSymbol, UnknownTimeframe
from market_pipeline.instruments_file import load_instruments
from market_pipeline.settings import ClickHouseSettings, Settings
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.ledgers import IngestLedger
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline_tests.stores.frames import MINUTE, START, bar, minutes, tombstones
from market_pipeline_tests.stores.test_ingest_ledger import line

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def settings(
    client: Client, clickhouse: ClickHouseSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    store = BarStore(client)
    store.insert_frame(minutes(60, batch_id=21))
    store.insert_frame(bar(START + MINUTE, source="live_aggregated", close=7.0))
    store.insert_frame(minutes(3, START + timedelta(days=40), batch_id=22))
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    store.insert_frame(minutes(3, now - 2 * MINUTE, symbol="BTCUSD"))
    store.insert_frame(bar(symbol="SPY", timeframe="1d", source="derived", origin="vendor_historical"))
    IngestLedger(client).record([line(21, new_rows=60)])
    yield Settings(home=tmp_path_factory.mktemp("home"), clickhouse=clickhouse)
    read._forget(clickhouse)


@pytest.mark.parametrize("symbol", ["EUR/USD", "EURUSD", "eurusd", "C:EURUSD", " eur/usd "])
def test_any_form_of_a_symbol_comes_back_in_display_form(settings: Settings, symbol: str) -> None:
    frame = read.bars(symbol, "1m", START, START + timedelta(hours=1), settings=settings)
    assert frame.columns == list(read.COLUMNS)
    assert frame["symbol"].unique().to_list() == ["EUR/USD"]
    assert frame.height == 60
    assert frame["ts"].is_sorted()
    assert frame.row(1, named=True)["close"] == 7.0
    assert frame.row(1, named=True)["source"] == "live_aggregated"


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2024-03-04", "2024-03-05", 60),
        (date(2024, 3, 4), date(2024, 3, 5), 60),
        ("2024-03-04T00:10", "2024-03-04T00:20", 10),
        ("2024-03-04T01:10+01:00", "2024-03-04 00:20Z", 10),
        (datetime(2024, 3, 4, 0, 59), datetime(2024, 3, 4, 2), 1),
        ("1999-01-01", "2024-03-04T00:05", 5),
    ],
)
def test_times_in_many_forms(settings: Settings, start: read.Moment, end: read.Moment, rows: int) -> None:
    assert read.bars("EUR/USD", "1m", start, end, settings=settings).height == rows


def test_only_closed_windows(settings: Settings) -> None:
    before = datetime.now(UTC)
    frame = read.bars("BTC/USD", "1m", before - timedelta(hours=1), before + timedelta(hours=1), settings=settings)
    assert frame.height in (2, 3)
    assert frame["ts"].max() + MINUTE <= datetime.now(UTC)


def test_empty_answers_have_the_columns(settings: Settings) -> None:
    frame = read.bars("GBP/USD", "1h", "2024-01-01", "2024-02-01", settings=settings)
    assert frame.is_empty()
    assert frame.schema["ts"] == pl.Datetime("ms", "UTC")
    assert read.newest("GBP/USD", "1h", 5, settings=settings).is_empty()


def test_bars_of_a_second(settings: Settings, client: Client, run: Run) -> None:
    begun = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
    store = AllBarStore(client)
    store.insert_frame(pl.concat(second(begun + timedelta(seconds=place)) for place in range(50)))
    store.insert_frame(second(begun - timedelta(hours=30)))
    minute = read.bars("ETH/USD", "1s", begun, begun + MINUTE, settings=settings)
    assert minute["ts"].to_list() == [begun + timedelta(seconds=place) for place in range(50)]
    assert minute["timeframe"].unique().to_list() == ["1s"]
    assert read.bars("ETH/USD", "1s", begun + MINUTE, begun + 2 * MINUTE, settings=settings).is_empty()
    newest = read.newest("ETH/USD", "1s", 3, settings=settings)
    assert newest["ts"].to_list() == [begun + timedelta(seconds=place) for place in (47, 48, 49)]
    assert read.newest("ETH/USD", "1s", 60, settings=settings).height == 51, "across a long pause"
    assert f"{begun:%Y-%m-%d %H:%M}:49 " in run("bars", "ETH/USD", "1s").output


def second(ts: datetime) -> pl.DataFrame:
    return bar(ts, symbol="ETHUSD", timeframe="1s", source="live_aggregated")


def test_clear_refusals(settings: Settings) -> None:
    def ask(
        symbol: str = "EUR/USD", timeframe: str = "1m", start: object = "2024-01-01", end: object = "2024-02-01"
    ) -> None:
        read.bars(symbol, timeframe, start, end, settings=settings)  # type: ignore[arg-type]

    with pytest.raises(UnknownSymbol, match="EUR/CHF"):
        ask(symbol="EUR/CHF")
    with pytest.raises(UnknownTimeframe, match="7m"):
        ask(timeframe="7m")
    with pytest.raises(BadRange, match=r"ends .* at or before its start"):
        ask(start="2024-02-01", end="2024-02-01")
    with pytest.raises(BadRange, match="in the future"):
        ask(start="2199-01-01", end="2199-01-02")
    with pytest.raises(BadRange, match="starts in the future"):
        ask(start="2199-01-01", end="2024-02-01")
    with pytest.raises(BadRange, match="before the history of EUR/USD starts"):
        ask(start="2001-01-01", end="2002-01-01")
    with pytest.raises(BadRange, match="'next tuesday' is no date"):
        ask(start="next tuesday")
    with pytest.raises(BadRange, match="not int"):
        ask(end=5)
    with pytest.raises(BadRange, match="1 or more"):
        read.newest("EUR/USD", "1m", 0, settings=settings)


def test_as_of_a_moment(settings: Settings, client: Client) -> None:
    """Windows that were open then are not there, and every moment that can have no answer says why."""
    day = ("2024-03-04", "2024-03-05")
    now = datetime.now(UTC)
    assert read.bars("EUR/USD", "1m", *day, as_of=now, settings=settings).equals(
        read.bars("EUR/USD", "1m", *day, settings=settings)
    )
    assert read.newest("EUR/USD", "1m", 2, as_of=now, settings=settings)["ts"].to_list() == [
        START + timedelta(days=40) + i * MINUTE for i in (1, 2)
    ]
    closed = read.newest("BTC/USD", "1m", 10, as_of=now, settings=settings)["ts"]
    assert closed.max() <= now - MINUTE
    with pytest.raises(BadRange, match="as_of lies in the future"):
        read.bars("EUR/USD", "1m", *day, as_of=now + timedelta(hours=1), settings=settings)
    with pytest.raises(BadRange, match=r"starts .* after the moment as of which"):
        read.bars("EUR/USD", "1m", *day, as_of="2024-03-03", settings=settings)
    with pytest.raises(BadRange, match=r"nothing of EUR/USD 1m was stored yet as of 2024-03-06.*became known at 20"):
        read.bars("EUR/USD", "1m", *day, as_of="2024-03-06", settings=settings)
    with pytest.raises(BadRange, match="nothing of EUR/USD 1m was stored yet"):
        read.newest("EUR/USD", "1m", 3, as_of="2024-03-06", settings=settings)
    with pytest.raises(BadRange, match="bars of 1s have no as_of"):
        read.newest("EUR/USD", "1s", 3, as_of=now, settings=settings)
    with pytest.raises(BadRange, match="'soon' is no date"):
        read.bars("EUR/USD", "1m", *day, as_of="soon", settings=settings)
    assert read.bars("GBP/USD", "1m", *day, as_of=now, settings=settings).is_empty()
    assert read.newest("GBP/USD", "1m", 3, as_of="2024-03-06", settings=settings).is_empty()


def test_the_newest_as_of_finds_what_is_withdrawn_now(settings: Settings, client: Client) -> None:
    store = BarStore(client)
    late = bar(START + timedelta(days=400), symbol="USDJPY", timeframe="1h", source="derived", origin="live_aggregated")
    store.insert_frame(late)
    known = datetime.now(UTC) + timedelta(milliseconds=2)
    while datetime.now(UTC) < known + timedelta(milliseconds=2):
        pass
    stored = store.stored_rows("USDJPY", "1h", "derived", late["ts"][0], late["ts"][0], with_tombstones=True)
    store.insert_changes(tombstones(late, revision=1_800_000_000_000), stored)
    assert read.newest("USD/JPY", "1h", 1, settings=settings).is_empty()
    assert read.newest("USD/JPY", "1h", 1, as_of=known, settings=settings)["ts"].to_list() == late["ts"].to_list()


def test_the_newest_bars_across_a_long_pause(settings: Settings) -> None:
    assert read.newest("EUR/USD", "1m", 2, settings=settings)["ts"].to_list() == [
        START + timedelta(days=40) + i * MINUTE for i in (1, 2)
    ]
    assert read.newest("EUR/USD", "1m", 10, settings=settings).height == 10
    assert read.newest("EUR/USD", "1m", 1000, settings=settings).height == 63
    assert read.newest("EUR/USD", "1m", 5, START + 3 * MINUTE, settings=settings).height == 3


def test_the_connection_is_kept_and_a_broken_one_is_not(settings: Settings) -> None:
    read.bars("EUR/USD", "1m", "2024-03-04", "2024-03-05", settings=settings)
    assert read._client(settings.clickhouse) is read._client(settings.clickhouse)
    away = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": 1})})
    with pytest.raises(StoreUnreachable):
        read.bars("EUR/USD", "1m", "2024-03-04", "2024-03-05", settings=away)
    assert read._key(away.clickhouse) not in read._clients


def test_instruments_of_a_file(settings: Settings, tmp_path: Path) -> None:
    assert "EURUSD" in load_instruments(settings).keys
    file = tmp_path / "mine.yaml"
    of_file = settings.model_copy(update={"instruments_file": file})
    with pytest.raises(InstrumentsFileError, match=r"mine\.yaml does not exist"):
        load_instruments(of_file)
    file.write_text("instruments: [{symbol: X, asset_class: stock, calendar: XNYS, history_start: 2020-01-01}]")
    with pytest.raises(InstrumentsFileError, match=r"mine\.yaml.*entry 1 \(X\).*vendor_ticker"):
        load_instruments(of_file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InstrumentsFileError, match="not UTF-8"):
        load_instruments(of_file)
    with pytest.raises(InstrumentsFileError, match="cannot be read"):
        load_instruments(settings.model_copy(update={"instruments_file": tmp_path}))


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name, value in settings.clickhouse.model_dump().items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        monkeypatch.setenv(f"MARKET_PIPELINE_CLICKHOUSE__{name.upper()}", text)
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(settings.home))
    monkeypatch.setenv("COLUMNS", "240")
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_bars_in_the_terminal_and_in_files(run: Run, tmp_path: Path) -> None:
    shown = run("bars", "EUR/USD", "1m", "--from", "2024-03-04", "--to", "2024-03-05", "--limit", "3")
    assert shown.exit_code == 0, shown.output
    assert "2024-03-04 00:59" in shown.output
    assert "2024-03-04 00:56" not in shown.output
    assert "the newest 3 of 60 bars" in shown.output
    newest = run("bars", "eurusd", "1m")
    assert "2024-04-13 00:02" in newest.output
    then = run("bars", "EUR/USD", "1m", "--from", "2024-03-04", "--as-of", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}")
    assert "as of 20" in then.output
    assert "2024-04-13 00:02" in then.output
    with pytest.raises(BadRange, match="nothing of EUR/USD 1m was stored yet"):
        run("bars", "EUR/USD", "1m", "--as-of", "2024-05-01")

    csv, parquet = tmp_path / "bars.csv", tmp_path / "bars.parquet"
    arguments = ("bars", "C:EURUSD", "1m", "--from", "2024-03-04", "--to", "2024-03-05")
    assert "60 bars written" in run(*arguments, "--csv", str(csv)).output
    assert pl.read_csv(csv).height == 60
    run(*arguments, "--parquet", str(parquet))
    assert pl.read_parquet(parquet).columns == list(read.COLUMNS)
    assert pl.read_csv(io.StringIO(run(*arguments, "--csv").output)).height == 60
    assert run(*arguments, "--csv", "--parquet").exit_code == 2
    assert run(*arguments, str(csv)).exit_code == 2, "a file without a format"


def test_a_range_without_bars_says_what_is_stored(run: Run, tmp_path: Path) -> None:
    empty = ("bars", "EUR/USD", "1m", "--from", "2024-05-01", "--to", "2024-05-02")
    said = "no bars of EUR/USD 1m in this range; stored are 63, from 2024-03-04 00:00 to 2024-04-13 00:02 UTC\n"
    shown = run(*empty)
    assert (shown.exit_code, shown.stdout, shown.stderr) == (1, "", said)
    csv = run(*empty, "--csv")
    assert (csv.exit_code, csv.stdout, csv.stderr) == (0, ",".join(read.COLUMNS) + "\n", said)
    assert "0 bars written" in run(*empty, "--parquet", str(tmp_path / "bars.parquet")).stdout
    assert "no bars of GBP/USD 1d are stored" in run("bars", "GBP/USD", "1d").stderr


def test_errors_of_the_bars_command_name_its_options(run: Run) -> None:
    with pytest.raises(BadRange, match="--from 'monday' is no date"):
        run("bars", "EUR/USD", "1m", "--from", "monday")
    with pytest.raises(BadRange, match="starts in the future"):
        run("bars", "EUR/USD", "1m", "--from", "2199-01-01")


def test_the_trace_of_a_bar(run: Run) -> None:
    shown = run("trace", "EUR/USD", "1m", "2024-03-04T00:01:30")
    assert shown.exit_code == 0, shown.output
    assert "live_aggregated" in shown.output
    assert "vendor_historical" in shown.output
    assert "HISTORY" not in shown.output
    assert "21" in shown.output
    assert run("trace", "EUR/USD", "1m", "2024-03-09").exit_code == 1
