"""Writes orders in batches. A batch is acknowledged after its commit; the unique key rejects duplicates."""

import json
import os
import signal
import sys

import pika
import pymysql

BATCH = 500
LINGER_SECONDS = 0.02
INSERT = "INSERT IGNORE INTO orders (sale, customer, name) VALUES (%s, %s, %s)"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    database = pymysql.connect(**json.loads(os.environ["DATABASE"]))
    channel = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
    channel.queue_declare("orders", durable=True)
    channel.basic_qos(prefetch_count=2 * BATCH)
    print("consuming", flush=True)
    batch, last = [], 0
    for method, _, body in channel.consume("orders", inactivity_timeout=LINGER_SECONDS):
        if method is not None:
            order = json.loads(body)
            batch.append((order["sale"], order["customer"], order["order"]))
            last = method.delivery_tag
        if batch and (method is None or len(batch) == BATCH):
            with database.cursor() as cursor:
                cursor.executemany(INSERT, batch)
            database.commit()
            channel.basic_ack(last, multiple=True)
            batch.clear()


if __name__ == "__main__":
    main()
