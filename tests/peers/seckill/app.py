"""The web tier: a claim is one Redis script and one confirmed message; a status page reads the order from MariaDB."""

import json
import os
import threading

import pika
import pymysql
import redis
from flask import Flask, request

# Returns the buyer's order: the new one, or the one that the buyer already has. Returns nothing if the sale is sold
# out.
CLAIM = """
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then return held end
if tonumber(redis.call('GET', KEYS[1]) or '0') < 1 then return '' end
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return ARGV[2]
"""
PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)

app = Flask(__name__)
store = redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=512, socket_timeout=5)
take = store.register_script(CLAIM)
# Each thread has its own connections, because pika's are not thread-safe.
own = threading.local()


def channel():
    if getattr(own, "channel", None) is None or own.channel.is_closed:
        parameters = pika.URLParameters(os.environ["AMQP_URL"])
        # A thread that publishes nothing answers no heartbeats.
        parameters.heartbeat = 0
        own.channel = pika.BlockingConnection(parameters).channel()
        own.channel.queue_declare("orders", durable=True)
        if os.environ["CONFIRMS"] == "on":
            # From here on, publishing returns once the broker has the message on disk.
            own.channel.confirm_delivery()
    return own.channel


def query(sql: str, *values):
    if getattr(own, "database", None) is None:
        own.database = pymysql.connect(**json.loads(os.environ["DATABASE"]), autocommit=True)
    own.database.ping(reconnect=True)
    with own.database.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()


@app.errorhandler(redis.RedisError)
@app.errorhandler(pika.exceptions.AMQPError)
@app.errorhandler(pymysql.err.OperationalError)
@app.errorhandler(OSError)
def unavailable(error):
    return {"error": type(error).__name__}, 503, {"Retry-After": "1"}


@app.get("/readyz")
def ready():
    store.ping()
    return {}


@app.post("/v1/products/<product>/register")
def register(product: str):
    data = request.get_json()
    query("INSERT IGNORE INTO products VALUES (%s, %s, %s)", product, data["name"], data["price_cents"])
    return {}


@app.post("/v1/sales/<sale>/schedule")
def schedule(sale: str):
    data = request.get_json()
    row = (sale, data["product"], data["price_cents"], data["units"])
    query("INSERT IGNORE INTO sales VALUES (%s, %s, %s, %s)", *row)
    store.set(f"{{{sale}}}:stock", data["units"], nx=True)
    return {}


@app.post("/v1/sales/<sale>/claim")
def claim(sale: str):
    data = request.get_json()
    customer, order = data["customer"], data["order"]
    held = take([f"{{{sale}}}:stock", f"{{{sale}}}:buyers"], [customer, order])
    if held != order:
        return {"rejection": "over_limit" if held else "sold_out"}, 422
    # A repeat is published again, because the first message may have been lost between Redis and the queue. The
    # consumer deduplicates.
    body = json.dumps({"sale": sale, "customer": customer, "order": order})
    channel().basic_publish("", "orders", body, PERSISTENT, mandatory=True)
    return {"id": sale, "version": 1, "order": f"{sale}~{order}", "token": order}


@app.get("/v1/orders/<order>")
def order_page(order: str):
    row = query("SELECT customer FROM orders WHERE sale = %s AND name = %s", *order.split("~", 1))
    return {"customer": row[0], "status": "placed"} if row else ({"status": "pending"}, 404)


@app.get("/v1/sales/<sale>")
def sale_page(sale: str):
    left = store.get(f"{{{sale}}}:stock")
    if left is None:
        return {"error": "no such sale"}, 404
    return {"key": sale, "data": {"status": "open", "left": int(left)}}, {"ETag": f'"{left}"'}


@app.get("/v1/products/<product>")
def product_page(product: str):
    row = query("SELECT name, price_cents FROM products WHERE id = %s", product)
    if row is None:
        return {"error": "no such product"}, 404
    return {"key": product, "data": {"name": row[0], "price_cents": row[1]}}, {"ETag": '"1"'}
