-- From 0.1.0, whose code ran SQL on its tables as vault_service, to 0.2.0, which reads and writes them below SQL. Rows stay
-- as they are; nobody keeps a right on a table, and what the workers look for moves from indexes to tables of its own.

-- All at once and in this order, so that nothing comes in between.
LOCK TABLE vault.secrets, vault.secret_versions, vault.roles, vault.role_permissions, vault.role_bindings, vault.tokens,
    vault.vault_meta, vault.audit_log, vault.audit_spools, vault.audit_pending IN ACCESS EXCLUSIVE MODE;

COMMENT ON ROLE vault_service IS 'hyperion_vault: the group of services'' own logins; no right on any table';

-- The view is replaced, not made anew: what others have built on it stays.
CREATE FUNCTION vault._secrets_handler() RETURNS fdw_handler
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_secrets_handler';
COMMENT ON FUNCTION vault._secrets_handler IS 'scans the foreign table behind vault.decrypted_secrets';
REVOKE ALL ON FUNCTION vault._secrets_handler() FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER hyperion_vault HANDLER vault._secrets_handler;
COMMENT ON FOREIGN DATA WRAPPER hyperion_vault IS 'secrets of this vault, without their values; for vault.decrypted_secrets only';
REVOKE ALL ON FOREIGN DATA WRAPPER hyperion_vault FROM PUBLIC;
CREATE SERVER hyperion_vault FOREIGN DATA WRAPPER hyperion_vault;
COMMENT ON SERVER hyperion_vault IS 'this very database; for vault.decrypted_secrets only';
REVOKE ALL ON FOREIGN SERVER hyperion_vault FROM PUBLIC;

CREATE FOREIGN TABLE vault._readable (
    id uuid,
    name text COLLATE "C",
    description text,
    created_at timestamptz,
    updated_at timestamptz
) SERVER hyperion_vault;
COMMENT ON FOREIGN TABLE vault._readable IS 'secrets that the current role may read, without their values; see vault.decrypted_secrets';
REVOKE ALL ON vault._readable FROM PUBLIC;

CREATE OR REPLACE VIEW vault.decrypted_secrets AS
    SELECT s.id, s.name, s.description, vault._open(s.id, s.name) AS decrypted_secret, s.created_at, s.updated_at
      FROM vault._readable s;
-- Without it the owner's right to the foreign table does not count.
ALTER VIEW vault.decrypted_secrets RESET (security_invoker);

-- The policies that admitted the extension's own statements and the view, and the rights that went with them.
DO $close$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vault_meta', 'secrets', 'secret_versions',
                           'roles', 'role_permissions', 'role_bindings', 'tokens',
                           'audit_log', 'audit_spools', 'audit_pending'] LOOP
        EXECUTE pg_catalog.format('DROP POLICY inside ON vault.%I', t);
        EXECUTE pg_catalog.format('REVOKE ALL ON vault.%I FROM vault_service', t);
    END LOOP;
END
$close$;
DROP POLICY reading ON vault.secrets;
REVOKE SELECT (id, name, description, allowed_ips, created_at, updated_at, expires_at, recover_until)
    ON vault.secrets FROM vault_user, vault_reader, vault_admin;
REVOKE USAGE ON SCHEMA vault FROM vault_service;
REVOKE USAGE ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info FROM vault_service;
DROP FUNCTION vault._visible(text, cidr[], timestamptz, timestamptz);
DROP FUNCTION vault._inside();

-- Unique indexes that no foreign key can refer to, in place of constraints.
ALTER TABLE vault.secrets DROP CONSTRAINT secrets_name_key;
CREATE UNIQUE INDEX secrets_name_key ON vault.secrets (name) WHERE name IS NOT NULL;
ALTER TABLE vault.roles DROP CONSTRAINT roles_name_key;
CREATE UNIQUE INDEX roles_name_key ON vault.roles (name) WHERE name IS NOT NULL;
ALTER TABLE vault.tokens DROP CONSTRAINT tokens_name_key;
CREATE UNIQUE INDEX tokens_name_key ON vault.tokens (name) WHERE name IS NOT NULL;
ALTER TABLE vault.role_bindings DROP CONSTRAINT role_bindings_pkey;
CREATE UNIQUE INDEX role_bindings_key ON vault.role_bindings (role_id, pg_role) WHERE role_id IS NOT NULL;
ALTER TABLE vault.role_bindings REPLICA IDENTITY FULL;

-- Indexes whose expressions and conditions were evaluated for each write.
DROP INDEX vault.secrets_target;
DROP INDEX vault.secrets_due_idx;
DROP INDEX vault.secrets_end_idx;
DROP INDEX vault.secret_versions_grace_idx;
-- For pages that are filled from now on. VACUUM FULL vault.secrets makes room in the others.
ALTER TABLE vault.secrets SET (fillfactor = 80);

-- What the workers look for instead.
CREATE TABLE vault.secret_dates (
    secret_id uuid NOT NULL,
    kind smallint NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT secret_dates_pkey PRIMARY KEY (secret_id, kind)
);
COMMENT ON TABLE vault.secret_dates IS 'when a worker looks at a secret; derived from vault.secrets and vault.secret_versions';
COMMENT ON COLUMN vault.secret_dates.kind IS '1: rotation; 2: rotation, the target is a function; 3: expiry, or end of the recovery window; 4: first end of a grace period';

CREATE TABLE vault.target_roles (
    role oid NOT NULL,
    secret_id uuid NOT NULL,
    CONSTRAINT target_roles_pkey PRIMARY KEY (role, secret_id)
);
COMMENT ON TABLE vault.target_roles IS 'Postgres roles that are a target of a secret; derived from vault.secrets';

-- The rules of src/store/derived.rs. Should a row be missing all the same, the maintenance worker makes it.
INSERT INTO vault.secret_dates (secret_id, kind, at)
    SELECT s.id,
           CASE WHEN s.target OPERATOR(pg_catalog.->>) 'type' OPERATOR(pg_catalog.=) 'function' THEN 2 ELSE 1 END,
           greatest(s.next_rotation_at, s.rotation_retry_at)
      FROM vault.secrets s
     WHERE s.kind OPERATOR(pg_catalog.=) 'automatic' AND s.recover_until IS NULL
       AND greatest(s.next_rotation_at, s.rotation_retry_at) IS NOT NULL
    UNION ALL
    SELECT s.id, 3, least(s.expires_at, s.recover_until)
      FROM vault.secrets s
     WHERE s.expires_at IS NOT NULL OR s.recover_until IS NOT NULL
    UNION ALL
    SELECT v.secret_id, 4, pg_catalog.min(v.expires_at)
      FROM vault.secret_versions v
     WHERE v.expires_at IS NOT NULL AND NOT v.settled
     GROUP BY v.secret_id;
INSERT INTO vault.target_roles (role, secret_id)
    SELECT DISTINCT r.role, s.id
      FROM vault.secrets s CROSS JOIN LATERAL pg_catalog.unnest(s.target_roles) r (role)
     WHERE s.target IS NOT NULL AND r.role IS NOT NULL;
CREATE INDEX secret_dates_at_idx ON vault.secret_dates (kind, at, secret_id);

-- From now on, for a superuser's SQL and logical replication, triggers keep them.
CREATE FUNCTION vault._secret_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_secret_changed';
COMMENT ON FUNCTION vault._secret_changed() IS 'keeps what is derived from a row of vault.secrets';
CREATE FUNCTION vault._version_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_version_changed';
COMMENT ON FUNCTION vault._version_changed() IS 'keeps what is derived from a row of vault.secret_versions';
REVOKE ALL ON FUNCTION vault._secret_changed(), vault._version_changed() FROM PUBLIC;
CREATE TRIGGER secret_changed AFTER INSERT OR UPDATE OR DELETE ON vault.secrets
    FOR EACH ROW EXECUTE FUNCTION vault._secret_changed();
CREATE TRIGGER version_changed AFTER INSERT OR UPDATE ON vault.secret_versions
    FOR EACH ROW EXECUTE FUNCTION vault._version_changed();
ALTER TABLE vault.secrets ENABLE ALWAYS TRIGGER secret_changed;
ALTER TABLE vault.secret_versions ENABLE ALWAYS TRIGGER version_changed;

CREATE FUNCTION vault._keep_derived() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION vault._keep_derived() IS 'leaves rows of a derived table as they are';
REVOKE ALL ON FUNCTION vault._keep_derived() FROM PUBLIC;
DO $guards$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['secret_dates', 'target_roles'] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER keep_derived BEFORE INSERT OR UPDATE OR DELETE ON vault.%I FOR EACH ROW EXECUTE FUNCTION vault._keep_derived()', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER keep_derived', t);
        EXECUTE pg_catalog.format('REVOKE ALL ON vault.%I FROM PUBLIC', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON vault.%I EXECUTE FUNCTION vault._refuse_truncate()', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER refuse_truncate', t);
    END LOOP;
END
$guards$;

-- The planner is told nothing of names any more.
DO $statistics$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vault_meta', 'secrets', 'secret_versions', 'secret_dates', 'target_roles',
                           'roles', 'role_permissions', 'role_bindings', 'tokens',
                           'audit_log', 'audit_spools', 'audit_pending'] LOOP
        EXECUTE (SELECT pg_catalog.format('ALTER TABLE vault.%I %s', t,
                     pg_catalog.string_agg(pg_catalog.format('ALTER COLUMN %I SET STATISTICS 0', a.attname), ', ' ORDER BY a.attnum))
                   FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.format('vault.%I', t)::regclass
                    AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
                    AND (t OPERATOR(pg_catalog.<>) 'audit_log'
                         OR a.attname OPERATOR(pg_catalog.=) ANY (ARRAY['subject', 'detail', 'token', 'role', 'session_role']::name[])));
    END LOOP;
END
$statistics$;
DELETE FROM pg_catalog.pg_statistic s USING pg_catalog.pg_attribute a
 WHERE a.attrelid OPERATOR(pg_catalog.=) s.starelid AND a.attnum OPERATOR(pg_catalog.=) s.staattnum
   AND a.attstattarget OPERATOR(pg_catalog.=) 0
   AND a.attrelid IN (SELECT c.oid FROM pg_catalog.pg_class c
                       WHERE c.relnamespace OPERATOR(pg_catalog.=) 'vault'::pg_catalog.regnamespace AND c.relkind OPERATOR(pg_catalog.=) 'r');
