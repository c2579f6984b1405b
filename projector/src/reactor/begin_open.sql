-- Lets the reactors try at once what was just parked. Placed orders are retried once they have been parked for a part of
-- $2 ms.
UPDATE parked SET at = now() - $2::bigint * interval '1 millisecond', retry_at = now() WHERE view = $1
