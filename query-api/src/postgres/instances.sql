SELECT instance, service, report, (extract(epoch FROM now() - seen) * 1000)::bigint
FROM instances
ORDER BY instance
LIMIT 500
