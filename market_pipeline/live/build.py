"""The live services by name, made from settings: what the live run and `market-pipeline run` start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from market_pipeline.errors import SettingsError
from market_pipeline.history.runtime import Clock, utc_now
from market_pipeline.instruments_file import load_instruments
from market_pipeline.live.service import LiveService
from market_pipeline.market.instruments import Instrument
from market_pipeline.settings import Settings

Maker = Callable[[Settings, Sequence[Instrument], str, Clock], LiveService]


def live_instruments(settings: Settings) -> list[Instrument]:
    """Return the instruments that are streamed: those of `live.symbols`, or all.

    Raises:
        UnknownSymbol: a symbol is not among the instruments.
    """
    instruments = load_instruments(settings)
    if not settings.live.symbols:
        return list(instruments)
    return list(dict.fromkeys(instruments.get(symbol) for symbol in settings.live.symbols))


def build_services(
    settings: Settings,
    names: Sequence[str] = (),
    *,
    run_id: str = "",
    clock: Clock = utc_now,
    replayed: bool = False,
) -> list[LiveService]:
    """Make the services of these names, all of them without a name; nothing is opened yet.

    `clock` is the machine's, or where `replayed` that of a replay, which may stand still and leap with its readers.

    Raises:
        SettingsError: a name is none of ours.
        UnknownSymbol: `live.symbols` names no instrument.
    """
    makers = _makers(replayed)
    wrong = [name for name in names if name not in makers]
    if wrong:
        raise SettingsError(f"there is no service {wrong[0]!r}: one of {', '.join(makers)}")
    instruments = live_instruments(settings)
    return [make(settings, instruments, run_id, clock) for name, make in makers.items() if not names or name in names]


def service_names() -> list[str]:
    """Return the names in the order in which services are shown."""
    return list(_makers(replayed=False))


def _makers(replayed: bool) -> dict[str, Maker]:
    # imported here: a command line that lists names need not load every client
    from market_pipeline.hub.throttle import ThrottleService
    from market_pipeline.live.aggregator_service import AggregatorService
    from market_pipeline.live.bridge_service import BridgeService
    from market_pipeline.live.collector_service import CollectorService
    from market_pipeline.live.repair import RepairService
    from market_pipeline.live.tick_bridge import TickBridgeService

    return {
        "collector": lambda settings, chosen, run, clock: CollectorService(
            settings, chosen, run_id=run, clock=clock, replayed=replayed
        ),
        "aggregator": lambda settings, chosen, run, clock: AggregatorService(settings, chosen, run_id=run, clock=clock),
        "ticks": lambda settings, _, run, __: TickBridgeService(settings, run_id=run),
        "bridge": lambda settings, _, run, __: BridgeService(settings, run_id=run),
        "repair": lambda settings, chosen, run, clock: RepairService(settings, chosen, run_id=run, clock=clock),
        "throttle": lambda settings, _, __, ___: ThrottleService(settings),
    }
