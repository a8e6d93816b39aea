-- Everything CREATE EXTENSION made, one line each, in the same words on every supported major.
-- Left out because majors differ: rights of an object's owner (MAINTAIN is new in 17), NOT NULL constraints (entries
-- of their own in 18; the columns say it too), array and row types (implied by their element or table).
SET search_path = pg_catalog;
CREATE TEMP TABLE listing (section int, line text COLLATE "C");

CREATE FUNCTION pg_temp.rights(acl aclitem[], kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(who || '=' || what, ' ' ORDER BY who COLLATE "C"), 'nobody') FROM (
    SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END AS who,
           string_agg(privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ',' ORDER BY privilege_type COLLATE "C") AS what
      FROM aclexplode(coalesce(acl, acldefault(kind, owner))) WHERE grantee <> owner GROUP BY grantee) x
$$;

CREATE TEMP TABLE member AS
  SELECT classid, objid FROM pg_depend
   WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
     AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hyperion_vault');
CREATE TEMP TABLE vault_table AS
  SELECT c.* FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid WHERE c.relkind IN ('r', 'p');

INSERT INTO listing
-- The members as pg_depend has them, and whatever else is in the schema without being one.
SELECT 0, 'member: ' || pg_describe_object(classid, objid, 0) FROM member
 WHERE NOT (classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
              WHERE t.oid = objid AND (t.typcategory = 'A' OR c.relkind IN ('r', 'v', 'f'))))
UNION ALL SELECT 1, 'stranger: ' || pg_describe_object(o.classid, o.objid, 0)
  FROM (SELECT 'pg_proc'::regclass::oid, oid, pronamespace FROM pg_proc
        UNION ALL SELECT 'pg_class'::regclass, oid, relnamespace FROM pg_class WHERE relkind NOT IN ('i', 'c')
        UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type WHERE typcategory <> 'A' AND typrelid = 0
        UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace FROM pg_operator) AS o(classid, objid, schema)
  LEFT JOIN member m USING (classid, objid)
 WHERE o.schema = 'vault'::regnamespace AND m.objid IS NULL
UNION ALL SELECT 2, format('schema %s: owner %s, rights %s', nspname, pg_get_userbyid(nspowner), pg_temp.rights(nspacl, 'n', nspowner))
  FROM pg_namespace WHERE nspname LIKE 'vault%'
UNION ALL SELECT 3, format('role %s: %s, members %s, member of %s', rolname,
    concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolinherit THEN 'inherit' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
      CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolcanlogin THEN 'LOGIN' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
      CASE WHEN rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN rolpassword IS NOT NULL THEN 'PASSWORD' END,
      CASE WHEN rolvaliduntil IS NOT NULL THEN 'VALID UNTIL' END, 'limit ' || rolconnlimit),
    coalesce((SELECT string_agg(pg_get_userbyid(member), ',') FROM pg_auth_members WHERE roleid = a.oid), 'none'),
    coalesce((SELECT string_agg(pg_get_userbyid(roleid), ',') FROM pg_auth_members WHERE pg_auth_members.member = a.oid), 'none'))
  FROM pg_authid a WHERE rolname LIKE 'vault\_%'
UNION ALL SELECT 4, format('type %s: %s, owner %s, rights %s', t.oid::regtype,
    coalesce((SELECT 'enum ' || string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),
             (SELECT 'columns ' || string_agg(format('%s %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
                FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped), t.typtype::text),
    pg_get_userbyid(typowner), pg_temp.rights(typacl, 'T', typowner))
  FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid
 WHERE t.typcategory <> 'A' AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind IN ('r', 'v', 'f'))
UNION ALL SELECT 5, format('table %s: %s, rls %s, forced %s, owner %s, rights %s', c.oid::regclass,
    CASE relpersistence WHEN 'p' THEN 'logged' ELSE relpersistence::text END, relrowsecurity, relforcerowsecurity,
    pg_get_userbyid(relowner), pg_temp.rights(relacl, 'r', relowner))
  FROM vault_table c
UNION ALL SELECT 6, format('column %s.%s %s: %s', c.oid::regclass, to_char(attnum, 'FM00'), attname,
    concat_ws(', ', format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END,
      'collation ' || nullif(attcollation, t.typcollation)::regcollation::text, 'default ' || pg_get_expr(d.adbin, d.adrelid),
      'storage ' || nullif(attstorage, t.typstorage)::text, 'RIGHTS ' || attacl::text, 'identity ' || nullif(attidentity, '')::text))
  FROM vault_table c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
  JOIN pg_type t ON t.oid = atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = attnum
UNION ALL SELECT 7, format('index %s', pg_get_indexdef(indexrelid)) FROM pg_index JOIN vault_table c ON c.oid = indrelid
UNION ALL SELECT 8, format('constraint %s.%s: %s', c.oid::regclass, conname, pg_get_constraintdef(k.oid))
  FROM pg_constraint k JOIN vault_table c ON c.oid = conrelid WHERE contype <> 'n'
UNION ALL SELECT 9, format('policy %s.%s: %s for %s to %s using %s check %s', c.oid::regclass, polname,
    CASE WHEN polpermissive THEN 'permissive' ELSE 'restrictive' END, CASE polcmd WHEN '*' THEN 'all' ELSE polcmd::text END,
    (SELECT string_agg(CASE r WHEN 0 THEN 'everyone' ELSE pg_get_userbyid(r) END, ',') FROM unnest(polroles) r),
    pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
  FROM pg_policy JOIN vault_table c ON c.oid = polrelid
UNION ALL SELECT 10, format('trigger %s, %s', pg_get_triggerdef(t.oid), CASE tgenabled WHEN 'O' THEN 'enabled' ELSE tgenabled::text END)
  FROM pg_trigger t JOIN vault_table c ON c.oid = tgrelid WHERE NOT tgisinternal
UNION ALL SELECT 11, format('rule %s', pg_get_ruledef(r.oid)) FROM pg_rewrite r JOIN vault_table c ON c.oid = ev_class
UNION ALL SELECT 12, format('function %s(%s) returns %s: %s, owner %s, rights %s', p.oid::regproc, pg_get_function_arguments(p.oid),
    pg_get_function_result(p.oid),
    concat_ws(', ', l.lanname || CASE WHEN l.lanname = 'c' THEN ' ' || prosrc ELSE '' END,
      CASE provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END,
      'parallel ' || CASE proparallel WHEN 'u' THEN 'unsafe' WHEN 'r' THEN 'restricted' ELSE 'SAFE' END,
      CASE WHEN proisstrict THEN 'STRICT' END, CASE WHEN prosecdef THEN 'SECURITY DEFINER' END,
      CASE WHEN proleakproof THEN 'LEAKPROOF' END, CASE WHEN prosupport <> 0 THEN 'support ' || prosupport::text END,
      'set ' || array_to_string(proconfig, '; '), 'rows ' || nullif(prorows, 0)),
    pg_get_userbyid(proowner), pg_temp.rights(proacl, 'f', proowner))
  FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid JOIN pg_language l ON l.oid = prolang
-- Older majors qualify all columns, newer ones only where they must.
UNION ALL SELECT 14, format('view %s: %s, owner %s, rights %s, as%s', c.oid::regclass, array_to_string(reloptions, ' '),
    pg_get_userbyid(relowner), pg_temp.rights(relacl, 'r', relowner), regexp_replace(regexp_replace(pg_get_viewdef(c.oid), '\s+', ' ', 'g'), '\ms\.', '', 'g'))
  FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid WHERE relkind = 'v'
UNION ALL SELECT 15, format('foreign table %s: server %s, options %s, owner %s, rights %s, columns %s', c.oid::regclass, srvname,
    coalesce(array_to_string(ftoptions, ' '), 'none'), pg_get_userbyid(relowner), pg_temp.rights(relacl, 'r', relowner),
    (SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), 'collation ' || nullif(attcollation, t.typcollation)::regcollation::text,
              'RIGHTS ' || attacl::text), ', ' ORDER BY attnum)
       FROM pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped))
  FROM pg_foreign_table f JOIN pg_class c ON c.oid = ftrelid JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
  JOIN pg_foreign_server s ON s.oid = ftserver
UNION ALL SELECT 16, format('wrapper %s: handler %s, validator %s, options %s, owner %s, rights %s', fdwname, fdwhandler::regproc, fdwvalidator::regproc,
    coalesce(array_to_string(fdwoptions, ' '), 'none'), pg_get_userbyid(fdwowner), pg_temp.rights(fdwacl, 'F', fdwowner))
  FROM pg_foreign_data_wrapper w JOIN member m ON m.classid = 'pg_foreign_data_wrapper'::regclass AND m.objid = w.oid
UNION ALL SELECT 17, format('server %s: wrapper %s, options %s, owner %s, rights %s', srvname, fdwname, coalesce(array_to_string(srvoptions, ' '), 'none'),
    pg_get_userbyid(srvowner), pg_temp.rights(srvacl, 'S', srvowner))
  FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = srvfdw
  JOIN member m ON m.classid = 'pg_foreign_server'::regclass AND m.objid = s.oid
UNION ALL SELECT 13, format('dumped: %s%s', o::regclass, coalesce(' where ' || nullif(e.extcondition[i], ''), ''))
  FROM pg_extension e, unnest(e.extconfig) WITH ORDINALITY AS u(o, i) WHERE extname = 'hyperion_vault';

-- The one statement with a result. The superuser of the cluster owns everything, whatever its name.
SELECT line FROM listing ORDER BY section, line;
