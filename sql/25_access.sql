-- Who may do what: roles with their rules, the Postgres roles they are bound to, tokens. Ids are random, so that a dump
-- restores them as they are. No foreign keys, as in sql/20_schema.sql; a row that refers to no role grants nothing.
-- The built-in role "admin" has no row; bindings and tokens of it have the id that is all zeros (src/store/roles.rs).
CREATE TABLE vault.roles (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    description text,
    is_admin boolean NOT NULL,
    created_at timestamptz NOT NULL
);
-- As secrets_name_key (sql/20_schema.sql): no foreign key can refer to it.
CREATE UNIQUE INDEX roles_name_key ON vault.roles (name) WHERE name IS NOT NULL;
COMMENT ON TABLE vault.roles IS 'vault roles: names for sets of rules';
COMMENT ON COLUMN vault.roles.is_admin IS 'manages the whole vault and reads no value, beside what the rules say';

CREATE TABLE vault.role_permissions (
    role_id uuid NOT NULL,
    action text COLLATE "C" NOT NULL,
    path text COLLATE "C" NOT NULL,
    CONSTRAINT role_permissions_pkey PRIMARY KEY (role_id, action, path)
);
COMMENT ON TABLE vault.role_permissions IS 'rules of vault roles: an action (* for all) on names that match a path';

CREATE TABLE vault.role_bindings (
    role_id uuid NOT NULL,
    pg_role text COLLATE "C" NOT NULL,
    pg_role_oid oid NOT NULL,
    created_at timestamptz NOT NULL
);
-- As secrets_name_key: the built-in role's id and the names of Postgres roles are known to everybody.
CREATE UNIQUE INDEX role_bindings_key ON vault.role_bindings (role_id, pg_role) WHERE role_id IS NOT NULL;
ALTER TABLE vault.role_bindings REPLICA IDENTITY FULL;
COMMENT ON TABLE vault.role_bindings IS 'Postgres roles that have a vault role, by name and OID: it counts while there is a role with both';

CREATE TABLE vault.tokens (
    id uuid PRIMARY KEY,
    role_id uuid NOT NULL,
    hash bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz
);
-- As secrets_name_key.
CREATE UNIQUE INDEX tokens_name_key ON vault.tokens (name) WHERE name IS NOT NULL;
COMMENT ON TABLE vault.tokens IS 'tokens by the SHA-256 of their text, which is kept nowhere';

-- Sessions remember the policy that concerns them: whatever changes it tells them. The extension's own changes do so by
-- themselves; these triggers are for what a superuser does in SQL, such as a restore. Row by row, since statement triggers
-- do not run where logical replication applies a change.
CREATE FUNCTION vault._access_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_identity_changed';
COMMENT ON FUNCTION vault._access_changed() IS 'makes every session look up anew who may do what';
REVOKE ALL ON FUNCTION vault._access_changed() FROM PUBLIC;
DO $announce$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['roles', 'role_permissions', 'role_bindings', 'tokens'] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER access_changed AFTER INSERT OR UPDATE %s OR DELETE ON vault.%I FOR EACH ROW EXECUTE FUNCTION vault._access_changed()',
            -- Not for last_used_at, which is noted now and then and changes nobody's rights.
            CASE t WHEN 'tokens' THEN 'OF id, role_id, hash, name, expires_at' END, t);
        EXECUTE pg_catalog.format('CREATE TRIGGER access_truncated AFTER TRUNCATE ON vault.%I EXECUTE FUNCTION vault._access_changed()', t);
        -- Always: session_replication_role = replica skips ordinary triggers.
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER access_changed', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER access_truncated', t);
    END LOOP;
END
$announce$;
