-- The main job of the vault, shown and checked: run by quickstart.sh with ON_ERROR_STOP, so that a result which is not
-- what it should be ends the quickstart with an error (expect; \gset keeps it quiet). Roles change with \connect, as real clients would be different
-- logins. Values are literals here because psql 15 has no bind parameters: an application binds them.
\pset footer off
\pset null '(null)'

\echo
\echo '--- superuser: the extension, an application that reads, an operator who manages'
\set ECHO queries
CREATE EXTENSION hyperion_vault;
CREATE ROLE app LOGIN IN ROLE vault_reader;
CREATE ROLE ops LOGIN IN ROLE vault_admin;
\set ECHO none
CREATE FUNCTION expect(ok boolean, otherwise text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF ok IS NOT TRUE THEN
        RAISE EXCEPTION 'not as expected: %', otherwise;
    END IF;
    RETURN 'as expected';
END
$$;
\set app_password `grep ':app:' "$PGPASSFILE" | cut -d: -f5`
\set ops_password `grep ':ops:' "$PGPASSFILE" | cut -d: -f5`
ALTER ROLE app PASSWORD :'app_password';
ALTER ROLE ops PASSWORD :'ops_password';
\set value `head -c 18 /dev/urandom | od -An -vtx1 | tr -d ' \n'`

\connect - ops
\echo
\echo '--- ops: a secret of his own choice, one that the vault generates and rotates, and what is there'
\set ECHO queries
SELECT name, kind, version FROM vault.create_secret(name => 'demo/db-password', value => :'value', description => 'typed in by an operator');
SELECT name, kind, version FROM vault.create_secret(name => 'demo/api-token', kind => 'automatic',
    rotation_interval => '30 days', grace_period => '1 hour', generator => '{"length": 32, "charset": "alphanumeric"}');
SELECT name, kind, version, next_rotation_at::date, grace_period, kms_key_id FROM vault.list_secrets('demo/*');
\set ECHO none

\echo
\echo '--- ops manages, but reads no value (an error is what should come)'
\set ON_ERROR_STOP off
\set ECHO queries
SELECT vault.read_secret(name => 'demo/db-password');
\set ECHO none
\set read_state :SQLSTATE
\set ON_ERROR_STOP on
SELECT expect(:'read_state' = '42501', 'ops could read') \gset

\connect - app
\echo
\echo '--- app: reads it; a right and a wrong candidate'
\set ECHO queries
SELECT vault.read_secret(name => 'demo/db-password');
SELECT valid, version FROM vault.verify(name => 'demo/db-password', candidate => :'value');
SELECT valid, version FROM vault.verify(name => 'demo/db-password', candidate => 'a wild guess');
\set ECHO none
SELECT expect(vault.read_secret(name => 'demo/db-password') = :'value', 'another value came back') \gset
SELECT expect(v.valid, 'the right candidate was refused') FROM vault.verify(name => 'demo/db-password', candidate => :'value') v \gset
SELECT expect(NOT v.valid, 'a wrong candidate was accepted') FROM vault.verify(name => 'demo/db-password', candidate => 'a wild guess') v \gset
SELECT vault.read_secret(name => 'demo/api-token') AS before \gset

\connect - ops
\echo
\echo '--- ops: rotates the automatic one; the value it had stays valid for its grace period'
\set ECHO queries
SELECT name, version FROM vault.rotate_secret(name => 'demo/api-token');
SELECT version, state, expires_at FROM vault.list_versions(name => 'demo/api-token');
\set ECHO none

\connect - app
\echo
\echo '--- app: the new value, and the old one still accepted'
\set ECHO queries
SELECT name, version, value FROM vault.get_secret(name => 'demo/api-token');
SELECT valid, version FROM vault.verify(name => 'demo/api-token', candidate => :'before');
\set ECHO none
SELECT expect(g.value <> :'before' AND g.version = 2, 'rotation changed nothing') FROM vault.get_secret(name => 'demo/api-token') g \gset
SELECT expect(v.valid AND v.version = 1, 'the old value is not accepted in its grace') FROM vault.verify(name => 'demo/api-token', candidate => :'before') v \gset

\connect - postgres
\echo
\echo '--- superuser: what is stored is sealed bytes'
\set ECHO queries
SELECT name, version, octet_length(sealed) AS bytes, left(encode(sealed, 'hex'), 48) || '...' AS sealed FROM vault.secrets ORDER BY name;
\set ECHO none
SELECT expect(count(*) = 2 AND bool_and(position(convert_to(:'value', 'UTF8') IN s.sealed) = 0), 'the value is stored in the clear') FROM vault.secrets s \gset

\echo
\echo '--- superuser: who did what, refused attempts too'
SELECT pg_sleep(1.5) \gset
\set ECHO queries
SELECT at::time(0), session_role, function, subject, version, outcome, sqlstate FROM vault.audit_log ORDER BY id;
\set ECHO none
SELECT expect(count(*) FILTER (WHERE function = 'read_secret' AND session_role = 'app' AND outcome = 'ok') = 3
          AND count(*) FILTER (WHERE function = 'read_secret' AND session_role = 'ops' AND outcome = 'denied') = 1,
          'the audit log does not tell it all') FROM vault.audit_log \gset
DROP FUNCTION expect;
