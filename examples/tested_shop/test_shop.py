from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import shop
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from pgqueue.testing import Sandbox


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sent: list[str] = []
    monkeypatch.setattr(shop.mailer, "send", lambda to, text: sent.append(f"{to}: {text}"))
    return sent


@pytest.fixture
def client(pgqueue_queue: Sandbox, session: Session) -> Iterator[TestClient]:  # noqa: ARG001 - begun before the client
    """The lifespan starts no worker while the queue is in a sandbox."""

    def in_the_test() -> Iterator[Session]:
        yield session
        session.commit()

    shop.api.dependency_overrides[shop.session] = in_the_test
    with TestClient(shop.api) as client:
        yield client
    shop.api.dependency_overrides.clear()


def test_who_signs_up_is_welcomed_and_reminded(client: TestClient, pgqueue_queue: Sandbox, mails: list[str]):
    client.post("/users", params={"email": "ann@example.com"})
    pgqueue_queue.assert_enqueued(shop.welcome, email="ann@example.com", queue="emails")

    (ran,) = pgqueue_queue.run_pending(raise_errors=True)
    assert (ran.state, ran.result) == ("completed", "sent")

    pgqueue_queue.clock.advance("3d")
    pgqueue_queue.run_pending()
    assert mails == ["ann@example.com: welcome", "ann@example.com: still there?"]


def test_a_sign_up_that_fails_welcomes_nobody(client: TestClient, pgqueue_queue: Sandbox, session: Session):
    session.add(shop.User(email="ann@example.com"))
    session.commit()
    with pytest.raises(Exception, match="duplicate key"):
        client.post("/users", params={"email": "ann@example.com"})
    session.rollback()
    pgqueue_queue.assert_not_enqueued(shop.welcome)


def test_a_mail_server_that_is_down_is_tried_again(pgqueue_queue: Sandbox, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: str) -> None:
        raise shop.MailServerDownError

    monkeypatch.setattr(shop.mailer, "send", refuse)
    pgqueue_queue.clock.move_to(datetime(2040, 1, 10, 12, tzinfo=UTC))  # a Tuesday: the report is not due
    shop.welcome.enqueue_sync("ann@example.com")
    states = []
    for _ in range(3):
        (ran,) = pgqueue_queue.run_pending()
        states.append(ran.state)
        pgqueue_queue.clock.advance("1h")
    assert states == ["retrying", "retrying", "dead"]


def test_the_report_comes_on_monday_at_nine(pgqueue_queue: Sandbox):
    pgqueue_queue.run_pending()
    pgqueue_queue.clock.move_to(datetime(2040, 1, 8, 12, tzinfo=UTC))  # a Sunday
    pgqueue_queue.run_pending()
    pgqueue_queue.clock.move_to(datetime(2040, 1, 9, 8, tzinfo=UTC))  # nine in Berlin
    assert [ran.result for ran in pgqueue_queue.run_pending()] == ["report of 2040-01-09"]
