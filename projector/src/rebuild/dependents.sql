-- SQL views that read the table directly, with their definitions.
SELECT DISTINCT dependent.oid::regclass::text, rtrim(pg_get_viewdef(dependent.oid), ';')
FROM pg_depend AS link
JOIN pg_rewrite AS rule ON rule.oid = link.objid
JOIN pg_class AS dependent ON dependent.oid = rule.ev_class
WHERE link.classid = 'pg_rewrite'::regclass AND link.refobjid = $1::text::regclass AND dependent.relkind = 'v'
