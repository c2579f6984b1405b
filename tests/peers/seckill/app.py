"""The web tier: a claim is one Redis script and one confirmed message, and a status page reads what became of it."""

import json
import os
from contextlib import asynccontextmanager

import aio_pika
import asyncmy
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis import asyncio as redis
from redis.exceptions import RedisError

# Returns the buyer's order: the new one, or the one that the buyer has already. Nothing: sold out.
CLAIM = """
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then return held end
if tonumber(redis.call('GET', KEYS[1]) or '0') < 1 then return '' end
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return ARGV[2]
"""
TIMEOUT = 5
# Redis's client refuses above 100 connections unless told otherwise.
REDIS = {"max_connections": 512, "socket_timeout": TIMEOUT, "socket_connect_timeout": 1}


class Claim(BaseModel):
    customer: str
    order: str


class Product(BaseModel):
    name: str
    price_cents: int


class Sale(BaseModel):
    product: str
    price_cents: int
    units: int


@asynccontextmanager
async def lifespan(app: FastAPI):
    state = app.state
    state.redis = redis.from_url(os.environ["REDIS_URL"], decode_responses=True, **REDIS)
    state.claim = state.redis.register_script(CLAIM)
    state.database = await asyncmy.create_pool(**json.loads(os.environ["DATABASE"]), maxsize=4, autocommit=True)
    broker = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    # With confirms, publish returns once the broker has the message on disk.
    channel = await broker.channel(publisher_confirms=os.environ["CONFIRMS"] == "on")
    await channel.declare_queue("orders", durable=True)
    state.exchange = channel.default_exchange
    yield
    await broker.close()
    state.database.close()
    await state.redis.aclose()


app = FastAPI(lifespan=lifespan, openapi_url=None)


async def query(sql: str, *values):
    async with app.state.database.acquire() as connection, connection.cursor() as cursor:
        await cursor.execute(sql, values)
        return await cursor.fetchone()


@app.exception_handler(RedisError)
@app.exception_handler(aio_pika.exceptions.AMQPError)
@app.exception_handler(aio_pika.exceptions.ChannelInvalidStateError)
@app.exception_handler(OSError)
async def unavailable(_: Request, error: Exception):
    return JSONResponse({"error": type(error).__name__}, 503, {"Retry-After": "1"})


@app.get("/readyz")
async def ready():
    await app.state.redis.ping()


@app.post("/v1/products/{product}/register")
async def register(product: str, data: Product):
    await query("INSERT IGNORE INTO products VALUES (%s, %s, %s)", product, data.name, data.price_cents)


@app.post("/v1/sales/{sale}/schedule")
async def schedule(sale: str, data: Sale):
    await query("INSERT IGNORE INTO sales VALUES (%s, %s, %s, %s)", sale, data.product, data.price_cents, data.units)
    await app.state.redis.set(f"{{{sale}}}:stock", data.units, nx=True)


@app.post("/v1/sales/{sale}/claim")
async def claim(sale: str, data: Claim):
    held = await app.state.claim([f"{{{sale}}}:stock", f"{{{sale}}}:buyers"], [data.customer, data.order])
    if held != data.order:
        return JSONResponse({"rejection": "over_limit" if held else "sold_out"}, 422)
    # A repeat is published again: the first may have died between Redis and the queue. The consumer knows doubles.
    body = json.dumps({"sale": sale, "customer": data.customer, "order": data.order}).encode()
    message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await app.state.exchange.publish(message, "orders", timeout=TIMEOUT)
    return JSONResponse({"id": sale, "version": 1, "order": f"{sale}~{data.order}", "token": data.order})


@app.get("/v1/orders/{sale}~{order}")
async def order(sale: str, order: str):
    row = await query("SELECT customer FROM orders WHERE sale = %s AND name = %s", sale, order)
    return JSONResponse({"customer": row[0], "status": "placed"}) if row else JSONResponse({"status": "pending"}, 404)


@app.get("/v1/sales/{sale}")
async def sale_page(sale: str):
    left = await app.state.redis.get(f"{{{sale}}}:stock")
    if left is None:
        return JSONResponse({"error": "no such sale"}, 404)
    return JSONResponse({"key": sale, "data": {"status": "open", "left": int(left)}}, headers={"ETag": f'"{left}"'})


@app.get("/v1/products/{product}")
async def product_page(product: str):
    row = await query("SELECT name, price_cents FROM products WHERE id = %s", product)
    if row is None:
        return JSONResponse({"error": "no such product"}, 404)
    return JSONResponse({"key": product, "data": {"name": row[0], "price_cents": row[1]}}, headers={"ETag": '"1"'})
