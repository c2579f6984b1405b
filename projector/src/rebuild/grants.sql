-- Statements that give table $2 what others were granted on table $1.
SELECT format(
    'GRANT %s ON %I TO %s%s',
    acl.privilege_type,
    $2::text,
    CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END,
    CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
)
FROM pg_class AS live
CROSS JOIN LATERAL aclexplode(live.relacl) AS acl
WHERE live.oid = $1::text::regclass AND acl.grantee <> live.relowner
