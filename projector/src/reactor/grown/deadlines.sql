SELECT kind, aggregate, (extract(epoch FROM due_at) * 1000000)::bigint, cause, reason FROM deadlines
