"""Sells a unit with a client of openapi-python-client: openapi_python_client.py URL"""
import datetime
import io
import json
import sys
import time
import uuid

from stampede_client import Client
from stampede_client.api.batch import commands_batch
from stampede_client.api.orders import (
    customers_orders_list, order_row, orders_as_of, orders_history, orders_pay, orders_place,
)
from stampede_client.api.products import product_row, products_as_of, products_register
from stampede_client.api.sales import sale_row, sales_claim, sales_schedule
from stampede_client.api.views import best_sellers_list, views, views_list
from stampede_client.models import (
    OrdersPay, OrdersPlace, OrdersPlaceLinesItem, ProductsRegister, ProductsRegisterIfNoneMatch, SalesClaim,
    SalesSchedule,
)
from stampede_client.types import File

client = Client(base_url=sys.argv[1])
product, order, customer, sale = (f"{kind}-{uuid.uuid4()}" for kind in ("product", "order", "customer", "sale"))
token = None


def sent(answer):
    global token
    assert answer.status_code == 200, answer
    token = answer.parsed.token


def shown(operation, *names, **more):
    answer = operation.sync_detailed(*names, client=client, consistency_token=token, prefer="wait=10", **more)
    assert answer.status_code == 200, (operation, answer)
    return answer.parsed


def eventually(look, wanted):
    end = time.monotonic() + 30
    while look() != wanted:
        assert time.monotonic() < end, f"it is not {wanted}"
        time.sleep(0.1)


record = ProductsRegister(name="Kind of Blue", price_cents=1177, stock=10)
only_new = ProductsRegisterIfNoneMatch("*")
sent(products_register.sync_detailed(product, client=client, body=record, if_none_match=only_new))
again = products_register.sync_detailed(product, client=client, body=record, if_match='"7"')
assert again.status_code == 412 and again.parsed.status == 412, again
line = OrdersPlaceLinesItem(product=product, quantity=1, amount_cents=1177)
sent(orders_place.sync_detailed(order, client=client, body=OrdersPlace(customer=customer, lines=[line])))
eventually(lambda: shown(order_row, order).data.status, "confirmed")
sent(orders_pay.sync_detailed(order, client=client, body=OrdersPay(payment="p-1", amount_cents=1177)))
assert shown(order_row, order).data.status == "paid"
assert shown(orders_as_of, order, version=1).data.status == "placed"
assert shown(orders_as_of, order, at=datetime.datetime.now(datetime.timezone.utc)).data.status == "paid"
assert [event.version for event in shown(orders_history, order)] == [1, 2, 3, 4]
assert shown(customers_orders_list, customer).rows[0].key == order
eventually(lambda: shown(product_row, product).data.sold, 1)
assert shown(products_as_of, product, version=1).data.available == 10
eventually(lambda: any(row.key == product for row in shown(best_sellers_list, limit=1000).rows), True)
assert views.sync(client=client).views[0].name == "product"
assert shown(views_list, "product").rows[0].data.price_cents >= 0

now = datetime.datetime.now(datetime.timezone.utc)
hour = datetime.timedelta(hours=1)
sent(sales_schedule.sync_detailed(sale, client=client, body=SalesSchedule(
    product=product, opens_at=now - hour, closes_at=now + hour, price_cents=900, units=5, limit_per_customer=2)))
eventually(lambda: shown(sale_row, sale).data.status, "open")
claim = SalesClaim(customer=customer, quantity=1, order=f"of-{sale}")
sent(sales_claim.sync_detailed(sale, client=client, body=claim))
assert shown(sale_row, sale).data.left == 4
claim = SalesClaim(customer=customer, quantity=2, order=f"more-{sale}")
over = sales_claim.sync_detailed(sale, client=client, body=claim)
assert over.status_code == 422 and over.parsed.rejection == "over_limit", over

restock = {"aggregate": "products", "id": product, "command": "restock"}
lines = "".join(json.dumps({**restock, "data": {"quantity": quantity}}) + "\n" for quantity in (1, 2))
answers = commands_batch.sync(client=client, body=File(payload=io.BytesIO(lines.encode()))).payload.read().decode()
assert [json.loads(answer)["status"] for answer in answers.splitlines()] == [200, 200], answers
print("sold")
