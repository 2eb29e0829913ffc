from django.db import transaction
from django.http import HttpRequest, JsonResponse

from shop.models import Order
from shop.tasks import confirm


@transaction.atomic
def order(request: HttpRequest) -> JsonResponse:
    """The order and its job commit together, or not at all."""
    order = Order.objects.create(item=request.POST["item"])
    result = confirm.enqueue(order.pk)
    if order.item == "moon":
        raise ValueError("not for sale")
    return JsonResponse({"order": order.pk, "task": result.id}, status=201)
