-- A count beyond a thousand tells no more.
SELECT view, count(*), (extract(epoch FROM min(at)) * 1000)::bigint
FROM (SELECT view, at FROM parked LIMIT 1000) AS first
GROUP BY view
