from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr

from market_pipeline.errors import StoreAuthError, StoreQueryError, StoreUnreachable, Transient
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import TickReader, TickStore
from market_pipeline_tests.stores.ticks.frames import START

SECRET = "a password of nobody"


async def refusal(settings: PostgresSettings) -> Exception:
    """What the store says; the reader must say the same."""
    with pytest.raises(Exception) as of_store:
        await TickStore(settings).start()
    with pytest.raises(type(of_store.value)) as of_reader:
        TickReader(settings).ticks("EURUSD", START, START)
    assert str(of_reader.value) == str(of_store.value)
    assert SECRET not in str(of_store.value)
    assert "\n" not in str(of_store.value)
    return of_store.value


async def test_a_wrong_password(database: PostgresSettings) -> None:
    error = await refusal(database.model_copy(update={"password": SecretStr(SECRET)}))
    assert isinstance(error, StoreAuthError)
    assert str(error) == (
        f"PostgreSQL at {database.host}:{database.port} refuses user 'market': mend postgres.user and "
        "postgres.password (MARKET_PIPELINE_POSTGRES__USER, MARKET_PIPELINE_POSTGRES__PASSWORD)"
    )


async def test_an_unknown_user_and_an_empty_password(database: PostgresSettings) -> None:
    assert isinstance(await refusal(database.model_copy(update={"user": "nobody"})), StoreAuthError)
    assert isinstance(await refusal(database.model_copy(update={"password": SecretStr("")})), StoreAuthError)


async def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = taken.getsockname()[1]
        error = await refusal(PostgresSettings(port=port, password=SecretStr(SECRET)))
    assert isinstance(error, StoreUnreachable)
    assert isinstance(error, Transient)
    assert str(error).startswith(f"PostgreSQL at 127.0.0.1:{port} does not answer (connection refused): start it, or ")
    assert "MARKET_PIPELINE_POSTGRES__PORT" in str(error)


async def test_a_folder_without_a_socket() -> None:
    error = await refusal(PostgresSettings(host="/nonexistent"))
    assert isinstance(error, StoreUnreachable)
    assert "no socket there" in str(error)


async def test_a_database_that_is_not_there(database: PostgresSettings) -> None:
    error = await refusal(database.model_copy(update={"database": "elsewhere"}))
    assert isinstance(error, StoreQueryError)
    assert "has no database 'elsewhere'" in str(error)
    assert "MARKET_PIPELINE_POSTGRES__DATABASE" in str(error)
