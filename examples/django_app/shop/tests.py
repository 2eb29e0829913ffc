from django.db import connection
from django.test import TestCase

from pgqueue.integrations.django_tasks import app_of
from pgqueue.testing import Sandbox
from shop.models import Order
from shop.tasks import confirm, count_words


class OrderTest(TestCase):
    """Each test is rolled back, with its jobs."""

    def setUp(self) -> None:
        self.queue = self.enterContext(Sandbox(app_of(), connection))

    def test_an_order_is_confirmed(self) -> None:
        answer = self.client.post("/orders", {"item": "tea"}).json()
        self.queue.assert_enqueued("shop.tasks.confirm", queue="emails", args=[answer["order"]])
        self.queue.run_pending(raise_errors=True)
        assert Order.objects.get().confirmed
        assert confirm.get_result(answer["task"]).return_value == f"order {answer['order']} is confirmed"

    def test_an_order_that_fails_leaves_no_job(self) -> None:
        with self.assertRaises(ValueError):  # noqa: PT027 - unittest, as Django has it
            self.client.post("/orders", {"item": "moon"})
        assert not Order.objects.exists()
        self.queue.assert_not_enqueued()

    def test_async_tasks_run_too(self) -> None:
        result = count_words.enqueue("three little words")
        self.queue.run_pending(raise_errors=True)
        result.refresh()
        assert result.return_value == 3
