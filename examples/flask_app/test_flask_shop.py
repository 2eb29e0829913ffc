import flask_shop
import pytest

import pgqueue
from pgqueue.testing import Sandbox


@pytest.fixture
def pgqueue_app() -> pgqueue.App:
    return flask_shop.queue


@pytest.fixture
def pgqueue_connection() -> None:
    """The requests commit; the queue is emptied after each test."""
    flask_shop.Base.metadata.create_all(flask_shop.engine)


def test_an_order_is_confirmed_in_flasks_context(pgqueue_queue: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(flask_shop.flask.config, "SENDER", "Bob")
    answer = flask_shop.flask.test_client().post("/orders", data={"item": "tea"})
    number = answer.get_json()["order"]
    pgqueue_queue.assert_enqueued(flask_shop.confirm, order=number)
    (ran,) = pgqueue_queue.run_pending(raise_errors=True)
    assert ran.result == f"order {number} confirmed by Bob"


def test_an_order_that_fails_confirms_nothing(pgqueue_queue: Sandbox):
    assert flask_shop.flask.test_client().post("/orders", data={}).status_code == 400
    pgqueue_queue.assert_not_enqueued()
