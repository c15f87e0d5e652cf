"""The instruments file: the packaged one, or the one that the settings name."""

from __future__ import annotations

from importlib import resources

from market_pipeline.errors import InstrumentsFileError
from market_pipeline.market.instruments import Instruments, parse_instruments
from market_pipeline.settings import Settings

PACKAGED = "instruments.yaml"


def load_instruments(settings: Settings) -> Instruments:
    """Read the instruments file of the settings (default: the packaged one).

    Raises:
        InstrumentsFileError: it cannot be read, or an entry is wrong; the message names file, entry and field.
    """
    if settings.instruments_file is None:
        return parse_instruments(resources.files("market_pipeline").joinpath(PACKAGED).read_text("utf-8"), PACKAGED)
    try:
        text = settings.instruments_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InstrumentsFileError(
            f"cannot read the instruments file {settings.instruments_file}: {reason}; "
            "mend instruments_file (MARKET_PIPELINE_INSTRUMENTS_FILE)"
        ) from None
    return parse_instruments(text, str(settings.instruments_file))
