import django

from shop.models import Order

if django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task


@task(queue_name="emails")
def confirm(order: int) -> str:
    Order.objects.filter(pk=order).update(confirmed=True)
    return f"order {order} is confirmed"


@task(priority=50)
async def count_words(text: str) -> int:
    return len(text.split())
