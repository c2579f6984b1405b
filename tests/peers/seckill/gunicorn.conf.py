"""One worker a core; each has one event loop, in which its claims wait for Redis and RabbitMQ together."""

workers = 2
worker_class = "uvicorn_worker.UvicornWorker"
backlog = 2048
graceful_timeout = 10
keepalive = 75
loglevel = "warning"
