from collections.abc import Iterator

import pytest
import shop
from sqlalchemy import Connection
from sqlalchemy.orm import Session

import pgqueue


@pytest.fixture
def pgqueue_app() -> pgqueue.App:
    return shop.queue


@pytest.fixture(scope="session")
def tables() -> None:
    shop.Base.metadata.create_all(shop.engine)


@pytest.fixture
def pgqueue_connection(tables: None) -> Iterator[Connection]:  # noqa: ARG001 - made before the transaction begins
    """One transaction around the whole test; the queue and the sessions of the code under test are inside it."""
    with shop.engine.connect() as connection:
        outer = connection.begin()
        yield connection
        outer.rollback()


@pytest.fixture
def session(pgqueue_connection: Connection) -> Iterator[Session]:
    """Its commit is a savepoint."""
    with Session(bind=pgqueue_connection, join_transaction_mode="create_savepoint") as session:
        yield session
