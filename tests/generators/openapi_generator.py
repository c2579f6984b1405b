"""Sells a unit with a client of openapi-generator, Python: openapi_generator.py URL"""
import datetime
import json
import sys
import time
import uuid

import stampede_generated as api

# The generator's default offset, +0000, is not valid in RFC 3339.
client = api.ApiClient(api.Configuration(host=sys.argv[1], datetime_format="%Y-%m-%dT%H:%M:%S.%fZ"))
products, orders, sales = api.ProductsApi(client), api.OrdersApi(client), api.SalesApi(client)
views, batch = api.ViewsApi(client), api.BatchApi(client)
product, order, customer, sale = (f"{kind}-{uuid.uuid4()}" for kind in ("product", "order", "customer", "sale"))
token = None


def sent(accepted):
    global token
    token = accepted.token


def shown(operation, *names, **more):
    return operation(*names, consistency_token=token, prefer="wait=10", **more)


def eventually(look, wanted):
    end = time.monotonic() + 30
    while look() != wanted:
        assert time.monotonic() < end, f"it is not {wanted}"
        time.sleep(0.1)


def refused(status, operation, *arguments, **more):
    try:
        operation(*arguments, **more)
    except api.ApiException as error:
        assert error.status == status, error
        return error.data
    raise AssertionError(f"it was not refused by {status}")


record = api.ProductsRegister(name="Kind of Blue", price_cents=1177, stock=10)
sent(products.products_register(product, products_register=record, if_none_match="*"))
assert refused(412, products.products_register, product, products_register=record, if_match='"7"').status == 412
line = {"product": product, "quantity": 1, "amount_cents": 1177}
place = api.OrdersPlace.from_dict({"customer": customer, "lines": [line]})
sent(orders.orders_place(order, orders_place=place))
eventually(lambda: shown(orders.order_row, order).data.status, "confirmed")
sent(orders.orders_pay(order, orders_pay=api.OrdersPay(payment="p-1", amount_cents=1177)))
assert shown(orders.order_row, order).data.status == "paid"
assert shown(orders.orders_as_of, order, version=1).data.status == "placed"
assert shown(orders.orders_as_of, order, at=datetime.datetime.now(datetime.timezone.utc)).data.status == "paid"
assert [event.version for event in shown(orders.orders_history, order)] == [1, 2, 3, 4]
assert shown(orders.customers_orders_list, customer).rows[0].key == order
eventually(lambda: shown(products.product_row, product).data.sold, 1)
assert shown(products.products_as_of, product, version=1).data.available == 10
eventually(lambda: any(row.key == product for row in shown(views.best_sellers_list, limit=1000).rows), True)
assert views.views().views[0].name == "product"

now = datetime.datetime.now(datetime.timezone.utc)
hour = datetime.timedelta(hours=1)
sent(sales.sales_schedule(sale, sales_schedule=api.SalesSchedule(
    product=product, opens_at=now - hour, closes_at=now + hour, price_cents=900, units=5, limit_per_customer=2)))
eventually(lambda: shown(sales.sale_row, sale).data.status, "open")
claim = api.SalesClaim(customer=customer, quantity=1, order=f"of-{sale}")
sent(sales.sales_claim(sale, sales_claim=claim))
assert shown(sales.sale_row, sale).data.left == 4
claim = api.SalesClaim(customer=customer, quantity=2, order=f"more-{sale}")
assert refused(422, sales.sales_claim, sale, sales_claim=claim).rejection == "over_limit"

restock = {"aggregate": "products", "id": product, "command": "restock"}
lines = "".join(json.dumps({**restock, "data": {"quantity": quantity}}) + "\n" for quantity in (1, 2))
answers = bytes(batch.commands_batch(lines.encode())).decode()
assert [json.loads(answer)["status"] for answer in answers.splitlines()] == [200, 200], answers
print("sold")
