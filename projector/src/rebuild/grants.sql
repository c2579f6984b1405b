-- Statements, for each privilege of another role on table $1, that grant it on table $2 and revoke the role's
-- privileges on $1.
SELECT
    format(
        'GRANT %s ON %I TO %s%s',
        acl.privilege_type,
        $2::text,
        grantee.name,
        CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
    ),
    format('REVOKE ALL ON %I FROM %s', live.relname, grantee.name)
FROM pg_class AS live
CROSS JOIN LATERAL aclexplode(live.relacl) AS acl
CROSS JOIN LATERAL (
    SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS name
) AS grantee
WHERE live.oid = $1::text::regclass AND acl.grantee <> live.relowner
