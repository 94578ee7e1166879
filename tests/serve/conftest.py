"""Empty databases for the gateway: each test on SQLite, and on a real PostgreSQL where one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import Engine

from gateway_stores import new_database, postgres_server
from stillhouse.serve.tables import open_database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], str]]:
    """Gives the URL of one more empty database."""
    folder = tmp_path_factory.mktemp("stores")
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{folder}/{len(list(folder.iterdir()))}.db"
        return
    for uri in postgres_server():
        yield lambda uri=uri: new_database(uri)  # type: ignore[misc]


@pytest.fixture
def url(urls: Callable[[], str]) -> str:
    """An empty database."""
    return urls()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A database with the gateway's tables."""
    engine = open_database(url)
    yield engine
    engine.dispose()
