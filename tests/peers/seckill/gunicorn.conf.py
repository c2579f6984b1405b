"""One worker per core. Each claim occupies a thread, which waits for Redis and for RabbitMQ's confirm."""

workers = 2
worker_class = "gthread"
threads = 64
backlog = 2048
graceful_timeout = 10
keepalive = 75
loglevel = "warning"
