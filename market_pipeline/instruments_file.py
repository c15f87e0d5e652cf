"""The instruments file: the one in the settings, or the one that comes with the package."""

from __future__ import annotations

from importlib import resources

from market_pipeline.errors import InstrumentsFileError
from market_pipeline.market.instruments import Instruments, parse_instruments
from market_pipeline.settings import Settings

PACKAGED = "instruments.yaml"


def load_instruments(settings: Settings) -> Instruments:
    """Load the instruments of `settings.instruments_file`, or the packaged ones where that is None.

    Raises:
        InstrumentsFileError: the file cannot be read, or an entry is wrong; the message names file, entry and field.
    """
    file = settings.instruments_file
    if file is None:
        text = resources.files("market_pipeline").joinpath(PACKAGED).read_text(encoding="utf-8")
        return parse_instruments(text, f"the packaged {PACKAGED}")
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InstrumentsFileError(
            f"{file} does not exist: mend instruments_file (MARKET_PIPELINE_INSTRUMENTS_FILE), or leave it unset to "
            "take the packaged instruments"
        ) from None
    except UnicodeDecodeError as error:
        raise InstrumentsFileError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InstrumentsFileError(f"{file} cannot be read: {error.strerror}") from None
    return parse_instruments(text, str(file))
