SELECT aggregate, version, reason, (extract(epoch FROM at) * 1000000)::bigint AS at_us
FROM parked
WHERE view = $1
ORDER BY aggregate, version
