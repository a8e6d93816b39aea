-- The four group roles a vault is used through, and the one its own statements run as.
-- Roles belong to the cluster, not to the extension: they survive DROP EXTENSION, and a restore after pg_dumpall
-- finds them there already, so an existing role is adopted when it is harmless and refused when it is not.
DO $roles$
DECLARE
    wanted text;
    existing record;
    members text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['vault_service', 'vault_user', 'vault_reader', 'vault_admin', 'vault_auditor'] LOOP
        SELECT r.oid, r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls
          INTO existing
          FROM pg_catalog.pg_roles r
         WHERE r.rolname OPERATOR(pg_catalog.=) wanted;
        IF NOT FOUND THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
            CONTINUE;
        END IF;
        IF existing.rolcanlogin OR existing.rolsuper OR existing.rolcreaterole OR existing.rolcreatedb
           OR existing.rolreplication OR existing.rolbypassrls THEN
            RAISE EXCEPTION USING
                ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = pg_catalog.format('role "%s" exists and cannot be adopted by hyperion_vault', wanted),
                DETAIL = 'A role of the vault must be NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS.',
                HINT = pg_catalog.format('Drop or rename the role, or run ALTER ROLE %I NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS.', wanted);
        END IF;
        SELECT pg_catalog.string_agg(pg_catalog.quote_ident(m.rolname), ', ' ORDER BY m.rolname)
          INTO members
          FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles m ON m.oid OPERATOR(pg_catalog.=) a.member
         WHERE a.roleid OPERATOR(pg_catalog.=) existing.oid;
        IF members IS NULL THEN
            CONTINUE;
        ELSIF wanted OPERATOR(pg_catalog.=) 'vault_service' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'role "vault_service" has members and cannot be adopted by hyperion_vault',
                DETAIL = pg_catalog.format('Members: %s.', members),
                HINT = pg_catalog.format('Run REVOKE vault_service FROM %s: nobody but the extension acts as this role.', members);
        ELSE
            -- CREATE EXTENSION raises client_min_messages to warning for its script, and puts it back after it.
            PERFORM pg_catalog.set_config('client_min_messages', 'notice', true);
            RAISE NOTICE USING
                MESSAGE = pg_catalog.format('role "%s" already exists and is adopted with its members: %s', wanted, members);
            PERFORM pg_catalog.set_config('client_min_messages', 'warning', true);
        END IF;
    END LOOP;
END
$roles$;

COMMENT ON ROLE vault_service IS 'hyperion_vault: runs the extension''s own statements; no logins, no members';
COMMENT ON ROLE vault_user IS 'hyperion_vault: may call the API; sees only what policies allow';
COMMENT ON ROLE vault_reader IS 'hyperion_vault: may read and verify every secret';
COMMENT ON ROLE vault_admin IS 'hyperion_vault: manages everything, reads no value';
COMMENT ON ROLE vault_auditor IS 'hyperion_vault: reads the audit log';
-- Types, tables, row-level security. Schema "vault" is made by CREATE EXTENSION (control file) and stays empty of
-- rows until the first secret is sealed, so that pg_restore finds nothing in its way.
-- One that is there already (left by DROP EXTENSION, or made by a restore) is taken over only if nobody else has a
-- hold on it: the owner of a schema can drop all that is in it, and who may create in it can plant functions.
DO $schema$
DECLARE
    problem text;
    other text;
BEGIN
    -- supabase_vault, wherever it was put: its functions have our names, and take name and value the other way round.
    SELECT e.extname INTO other
      FROM pg_catalog.pg_extension e
     WHERE e.extname OPERATOR(pg_catalog.=) 'supabase_vault'
        OR e.extname OPERATOR(pg_catalog.<>) 'hyperion_vault'
           AND e.extnamespace OPERATOR(pg_catalog.=) (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'vault')
     ORDER BY e.extname OPERATOR(pg_catalog.=) 'supabase_vault' DESC LIMIT 1;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('hyperion_vault cannot live in one database with extension "%s"', other),
            DETAIL = 'Both use schema "vault"; create_secret(name, value) of the one is create_secret(value, name) of the other.',
            HINT = pg_catalog.format('Move its secrets as docs/migration.md describes, or run DROP EXTENSION %I, and then CREATE EXTENSION hyperion_vault.', other);
    END IF;
    SELECT CASE
             WHEN NOT o.rolsuper THEN pg_catalog.format('It belongs to role %I, who is not a superuser.', o.rolname)
             WHEN EXISTS (SELECT FROM pg_catalog.aclexplode(n.nspacl) a
                           WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner)
               THEN 'Other roles than its owner may create objects in it.'
             WHEN EXISTS (SELECT FROM pg_catalog.pg_depend d
                           WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
                             AND d.refobjid OPERATOR(pg_catalog.=) n.oid
                             AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_extension'::pg_catalog.regclass)
               THEN 'It holds objects.'
           END
      INTO problem
      FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) n.nspowner
     WHERE n.nspname OPERATOR(pg_catalog.=) 'vault';
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'schema "vault" exists and cannot be taken over by hyperion_vault',
            DETAIL = problem,
            HINT = 'Drop or rename the schema, or empty it, revoke CREATE on it and make a superuser its owner.';
    END IF;
END
$schema$;
REVOKE ALL ON SCHEMA vault FROM PUBLIC;
GRANT USAGE ON SCHEMA vault TO vault_service, vault_user, vault_reader, vault_admin, vault_auditor;
COMMENT ON SCHEMA vault IS 'hyperion_vault: secrets sealed by envelope encryption, read with SQL';

CREATE TYPE vault.secret_kind AS ENUM ('manual', 'automatic');
COMMENT ON TYPE vault.secret_kind IS 'manual: changed by its owner; automatic: replaced with a generated value by rotation';
CREATE TYPE vault.secret_format AS ENUM ('opaque', 'binary', 'userpass');
COMMENT ON TYPE vault.secret_format IS 'opaque: text; binary: bytea; userpass: a user name and password sealed together';

CREATE TYPE vault.secret_info AS (
    id uuid,
    name text,
    kind vault.secret_kind,
    format vault.secret_format,
    version int,
    description text,
    metadata jsonb,
    rotation_interval interval,
    grace_period interval,
    next_rotation_at timestamptz,
    generator jsonb,
    allowed_ips cidr[],
    keep_versions int,
    kms_key_id text,
    created_at timestamptz,
    updated_at timestamptz,
    version_created_at timestamptz,
    expires_at timestamptz,
    recover_until timestamptz,
    target jsonb,
    rotation_attempts int,
    rotation_error text,
    rotation_retry_at timestamptz
);
COMMENT ON TYPE vault.secret_info IS 'what may be known of a secret without reading it; never plaintext';

-- True only while C code of this extension is running a statement of its own in this backend. A role name would
-- not do as a guard: roles can be granted, joined and SET; this flag cannot be set from SQL.
CREATE FUNCTION vault._inside() RETURNS boolean
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_inside';
COMMENT ON FUNCTION vault._inside() IS 'whether code of the extension is running; the only condition of every row-level security policy here';
REVOKE ALL ON FUNCTION vault._inside() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault._inside() TO vault_service;

CREATE FUNCTION vault._refuse_truncate() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION USING
        ERRCODE = 'insufficient_privilege',
        MESSAGE = format('table "vault.%s" cannot be truncated', TG_TABLE_NAME),
        HINT = CASE WHEN TG_TABLE_NAME LIKE '%secret%' THEN 'Use vault.delete_secret().' ELSE 'Use the functions of schema vault.' END;
END
$$;
COMMENT ON FUNCTION vault._refuse_truncate() IS 'TRUNCATE is not subject to row-level security: this guard is';
REVOKE ALL ON FUNCTION vault._refuse_truncate() FROM PUBLIC;

-- One row: which vault this is. Part of the AAD of every value, so a ciphertext of another vault does not open here.
CREATE TABLE vault.vault_meta (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    vault_id uuid NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE vault.vault_meta IS 'identity of this vault, made at the first seal';
-- Sessions remember the id: whatever changes it tells them.
CREATE FUNCTION vault._identity_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_identity_changed';
COMMENT ON FUNCTION vault._identity_changed() IS 'makes every session look the vault''s identity up again';
REVOKE ALL ON FUNCTION vault._identity_changed() FROM PUBLIC;
CREATE TRIGGER identity_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON vault.vault_meta
    EXECUTE FUNCTION vault._identity_changed();
ALTER TABLE vault.vault_meta ENABLE ALWAYS TRIGGER identity_changed;

-- A secret and its current version in one row: a read needs one index descent. Fixed-width columns first, so that
-- the offsets of the ones the read path takes are known without walking the tuple.
CREATE TABLE vault.secrets (
    id uuid PRIMARY KEY,
    version_id uuid NOT NULL,
    version int NOT NULL CHECK (version > 0),
    name text COLLATE "C" NOT NULL,
    format text COLLATE "C" NOT NULL CHECK (format IN ('opaque', 'binary', 'userpass')),
    wrapped_dek bytea NOT NULL,
    sealed bytea NOT NULL,
    kms_key_id text NOT NULL,
    kms_key_material_id text,
    kind vault.secret_kind NOT NULL,
    description text,
    metadata jsonb,
    rotation_interval interval,
    grace_period interval,
    next_rotation_at timestamptz,
    generator jsonb,
    allowed_ips cidr[],
    keep_versions int CHECK (keep_versions >= 0),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    version_created_at timestamptz NOT NULL,
    expires_at timestamptz,
    recover_until timestamptz,
    grace_until timestamptz,
    target jsonb,
    target_set_by text COLLATE "C",
    target_set_by_oid oid,
    target_roles oid[],
    -- Of a scheduled rotation that fails: attempts in a row, the last error, when it is tried again.
    rotation_attempts int,
    rotation_error text,
    rotation_retry_at timestamptz,
    CONSTRAINT secrets_name_key UNIQUE (name)
);
-- For the question whether a role is another secret's target already. Few secrets have one.
CREATE INDEX secrets_target ON vault.secrets (id) WHERE target IS NOT NULL;
-- Ciphertext does not compress; trying costs time on every write.
ALTER TABLE vault.secrets ALTER COLUMN sealed SET STORAGE EXTERNAL, ALTER COLUMN wrapped_dek SET STORAGE EXTERNAL;
COMMENT ON TABLE vault.secrets IS 'secrets with their current version, sealed; read through vault.read_secret()';
COMMENT ON COLUMN vault.secrets.expires_at IS 'when the secret runs out (expires_in): from then on it is gone, whether or not its row still stands';
COMMENT ON COLUMN vault.secrets.recover_until IS 'deleted, and restorable until then; gone afterwards';
COMMENT ON COLUMN vault.secrets.grace_until IS 'end of the last grace of any superseded version, in the past if there is none; NULL: not known, so that verify looks';
COMMENT ON COLUMN vault.secrets.target IS 'what each new version is handed to, in the same transaction';
COMMENT ON COLUMN vault.secrets.target_set_by IS 'the role that set the target, as which it is applied; counts only while target_set_by_oid is that role';
COMMENT ON COLUMN vault.secrets.target_roles IS 'oids of the roles that the target names';

COMMENT ON COLUMN vault.secrets.rotation_attempts IS 'how often in a row scheduled rotation has failed; NULL when it has not';
COMMENT ON COLUMN vault.secrets.rotation_error IS 'why it failed last';
COMMENT ON COLUMN vault.secrets.rotation_retry_at IS 'when it is tried again; next_rotation_at stays what it was';
-- What the maintenance worker looks for: each holds only rows that have a date, in its order, so that what is not due
-- costs a look nothing.
CREATE INDEX secrets_due_idx ON vault.secrets ((greatest(rotation_retry_at, next_rotation_at)), id)
    WHERE kind = 'automatic' AND recover_until IS NULL;
CREATE INDEX secrets_end_idx ON vault.secrets ((least(expires_at, recover_until)), id)
    WHERE expires_at IS NOT NULL OR recover_until IS NOT NULL;

-- Superseded versions: in grace until expires_at, retained after it (for rolling back only).
-- No foreign key: the server checks one under the transaction's snapshot, so that a REPEATABLE READ session could not
-- write to a secret younger than itself, and not at all under session_replication_role = replica. The extension is
-- the only writer; it locks the secret before it touches a version, and deletes the versions with it.
CREATE TABLE vault.secret_versions (
    secret_id uuid NOT NULL,
    version_id uuid NOT NULL,
    version int NOT NULL CHECK (version > 0),
    format text COLLATE "C" NOT NULL CHECK (format IN ('opaque', 'binary', 'userpass')),
    wrapped_dek bytea NOT NULL,
    sealed bytea NOT NULL,
    kms_key_id text NOT NULL,
    kms_key_material_id text,
    created_at timestamptz NOT NULL,
    superseded_at timestamptz NOT NULL,
    expires_at timestamptz,
    -- Whether the end of its grace has been dealt with.
    settled boolean NOT NULL DEFAULT false,
    CONSTRAINT secret_versions_pkey PRIMARY KEY (secret_id, version)
);
ALTER TABLE vault.secret_versions ALTER COLUMN sealed SET STORAGE EXTERNAL, ALTER COLUMN wrapped_dek SET STORAGE EXTERNAL;
CREATE INDEX secret_versions_grace_idx ON vault.secret_versions (expires_at, secret_id)
    WHERE expires_at IS NOT NULL AND NOT settled;
COMMENT ON TABLE vault.secret_versions IS 'superseded versions, sealed: in grace until expires_at, then retained for rolling back';

-- The audit log. The relay is its only writer, one process at a time, so that ids have no gaps and rows can be chained
-- (mac). No index but the key and a small one over time: it has to take fifty thousand rows a second, and a hundred
-- million rows are searched by time.
CREATE TABLE vault.audit_log (
    id bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    spool_id uuid NOT NULL,
    position bigint NOT NULL,
    system_id numeric NOT NULL,
    timeline bigint NOT NULL,
    node text COLLATE "C" NOT NULL,
    session_role text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    token text COLLATE "C",
    client text COLLATE "C" NOT NULL,
    client_addr inet,
    action text COLLATE "C" NOT NULL,
    function text COLLATE "C" NOT NULL,
    subject text COLLATE "C",
    version int,
    outcome text COLLATE "C" NOT NULL CHECK (outcome IN ('ok', 'denied', 'error', 'pending', 'rolled_back', 'unknown')),
    sqlstate text COLLATE "C",
    detail text COLLATE "C",
    occurrences bigint NOT NULL CHECK (occurrences > 0),
    resolves bigint,
    mac bytea
);
CREATE INDEX audit_log_at ON vault.audit_log USING brin (at) WITH (pages_per_range = 32);
COMMENT ON TABLE vault.audit_log IS 'who did what to which secret, allowed or not; read by vault_auditor, written by the relay worker';
COMMENT ON COLUMN vault.audit_log.position IS 'with spool_id, the record''s key: where it lay in the spool of the node that wrote it';
COMMENT ON COLUMN vault.audit_log.role IS 'the role whose rights counted: after SET ROLE, or inside a SECURITY DEFINER function';
COMMENT ON COLUMN vault.audit_log.client IS 'tcp, local (Unix socket), internal:TYPE (a background worker), or none';
COMMENT ON COLUMN vault.audit_log.outcome IS 'ok, denied, error; of a write also rolled_back, unknown, or pending: a later row resolves it';
COMMENT ON COLUMN vault.audit_log.occurrences IS 'how many operations the row stands for: more than one for refusals that were counted instead of written';
COMMENT ON COLUMN vault.audit_log.resolves IS 'the id of the pending row whose outcome this row tells';
COMMENT ON COLUMN vault.audit_log.mac IS 'for the chain over the rows; empty as yet';

-- How far each spool is in the table. Committed with the rows, so that each record is taken once.
CREATE TABLE vault.audit_spools (
    spool_id uuid PRIMARY KEY,
    position bigint NOT NULL,
    records bigint NOT NULL,
    updated_at timestamptz NOT NULL
);
COMMENT ON TABLE vault.audit_spools IS 'up to which position each audit spool has been taken into vault.audit_log';

-- Writes whose transaction was open when their row was written.
CREATE TABLE vault.audit_pending (
    id bigint PRIMARY KEY,
    xid text COLLATE "C" NOT NULL
);
COMMENT ON TABLE vault.audit_pending IS 'pending rows of vault.audit_log that no later row resolves yet';
-- Who may do what: roles with their rules, the Postgres roles they are bound to, tokens. Ids are random, so that a dump
-- restores them as they are. No foreign keys, as in sql/20_schema.sql; a row that refers to no role grants nothing.
-- The built-in role "admin" has no row; bindings and tokens of it have the id that is all zeros (src/store/roles.rs).
CREATE TABLE vault.roles (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    description text,
    is_admin boolean NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT roles_name_key UNIQUE (name)
);
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
    created_at timestamptz NOT NULL,
    CONSTRAINT role_bindings_pkey PRIMARY KEY (role_id, pg_role)
);
COMMENT ON TABLE vault.role_bindings IS 'Postgres roles that have a vault role, by name and OID: it counts while there is a role with both';

CREATE TABLE vault.tokens (
    id uuid PRIMARY KEY,
    role_id uuid NOT NULL,
    hash bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT tokens_name_key UNIQUE (name)
);
COMMENT ON TABLE vault.tokens IS 'tokens by the SHA-256 of their text, which is kept nowhere';

-- Sessions remember the policy that concerns them: whatever changes it tells them. Row by row, since statement triggers do
-- not run where logical replication applies a change.
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
-- What every table of the vault has: no rights for anybody but vault_service, forced row-level security that admits only
-- code of the extension, a guard against TRUNCATE, and its place in dumps.
DO $guards$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vault_meta', 'secrets', 'secret_versions',
                           'roles', 'role_permissions', 'role_bindings', 'tokens',
                           'audit_log', 'audit_spools', 'audit_pending'] LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON vault.%I FROM PUBLIC', t);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON vault.%I TO vault_service', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE pg_catalog.format('CREATE POLICY inside ON vault.%I USING (vault._inside()) WITH CHECK (vault._inside())', t);
        EXECUTE pg_catalog.format('COMMENT ON POLICY inside ON vault.%I IS %L', t, 'only code of the extension');
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON vault.%I EXECUTE FUNCTION vault._refuse_truncate()', t);
        -- Always: session_replication_role = replica skips ordinary triggers.
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER refuse_truncate', t);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('vault.%I', t)::regclass, '');
    END LOOP;
END
$guards$;
-- The API. Functions are not STRICT: a NULL name is a mistake to be named, not a NULL to be returned.
-- Sealing and reading functions are VOLATILE (a STABLE one would run during EXPLAIN); reads are PARALLEL RESTRICTED,
-- since only the leader knows the client's address and role.

CREATE FUNCTION vault.create_secret(
    name text, value text DEFAULT NULL, kind vault.secret_kind DEFAULT 'manual',
    description text DEFAULT NULL, username text DEFAULT NULL, password text DEFAULT NULL,
    rotation_interval interval DEFAULT NULL, grace_period interval DEFAULT NULL,
    generator jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, allowed_ips cidr[] DEFAULT NULL,
    keep_versions int DEFAULT NULL, expires_in interval DEFAULT NULL, target jsonb DEFAULT NULL)
    RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_create_secret';
COMMENT ON FUNCTION vault.create_secret IS 'create a secret; the value is given, or generated where kind is automatic or a generator is named';

CREATE FUNCTION vault.create_secret_bytes(
    name text, value bytea, description text DEFAULT NULL, grace_period interval DEFAULT NULL,
    metadata jsonb DEFAULT NULL, allowed_ips cidr[] DEFAULT NULL, keep_versions int DEFAULT NULL,
    expires_in interval DEFAULT NULL)
    RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_create_secret_bytes';
COMMENT ON FUNCTION vault.create_secret_bytes IS 'create a secret of format binary';

CREATE FUNCTION vault.put_secret(
    name text, value text, expected_version int DEFAULT NULL, description text DEFAULT NULL)
    RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_put_secret';
COMMENT ON FUNCTION vault.put_secret IS 'create or update, safe when raced; expected_version 0 means the secret must not exist';

CREATE FUNCTION vault.put_secret_bytes(
    name text, value bytea, expected_version int DEFAULT NULL, description text DEFAULT NULL)
    RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_put_secret_bytes';
COMMENT ON FUNCTION vault.put_secret_bytes IS 'put_secret for a secret of format binary';

CREATE FUNCTION vault.read_secret(name text, version int DEFAULT NULL) RETURNS text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_read_secret';
COMMENT ON FUNCTION vault.read_secret IS 'the value of a secret (the password of a userpass secret), current or by version';

CREATE FUNCTION vault.read_secret_bytes(name text, version int DEFAULT NULL) RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_read_secret_bytes';
COMMENT ON FUNCTION vault.read_secret_bytes IS 'the value of a binary secret, or the UTF-8 bytes of an opaque one, current or by version';

CREATE FUNCTION vault.get_secret(
    name text, version int DEFAULT NULL,
    OUT name text, OUT kind vault.secret_kind, OUT format vault.secret_format, OUT version int,
    OUT value text, OUT username text, OUT password text, OUT created_at timestamptz, OUT expires_at timestamptz)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'vault_get_secret';
COMMENT ON FUNCTION vault.get_secret IS 'a secret with its value, user name and password, current or by version';

CREATE FUNCTION vault.read_secrets(
    names text[],
    OUT name text, OUT kind vault.secret_kind, OUT format vault.secret_format, OUT version int,
    OUT value text, OUT username text, OUT password text, OUT created_at timestamptz, OUT expires_at timestamptz)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'vault_read_secrets';
COMMENT ON FUNCTION vault.read_secrets IS 'get_secret for several names at once, at most hyperion_vault.max_batch; names that do not exist are left out';

CREATE FUNCTION vault.verify(name text, candidate text, OUT valid boolean, OUT version int)
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_verify';
COMMENT ON FUNCTION vault.verify IS 'whether the candidate is the current value or one still in grace, in constant time, and which version';

CREATE FUNCTION vault.verify_bytes(name text, candidate bytea, OUT valid boolean, OUT version int)
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_verify_bytes';
COMMENT ON FUNCTION vault.verify_bytes IS 'verify with a candidate of bytes';

CREATE FUNCTION vault.update_secret(
    name text, value text DEFAULT NULL, kind vault.secret_kind DEFAULT NULL,
    description text DEFAULT NULL, username text DEFAULT NULL, password text DEFAULT NULL,
    rotation_interval interval DEFAULT NULL, grace_period interval DEFAULT NULL,
    generator jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, allowed_ips cidr[] DEFAULT NULL,
    keep_versions int DEFAULT NULL, expires_in interval DEFAULT NULL, expected_version int DEFAULT NULL, reset text[] DEFAULT NULL,
    target jsonb DEFAULT NULL)
    RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_update_secret';
COMMENT ON FUNCTION vault.update_secret IS 'change the value or properties; NULL leaves a property, reset clears the named ones';

CREATE FUNCTION vault.rotate_secret(name text) RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_rotate_secret';
COMMENT ON FUNCTION vault.rotate_secret IS 'replace the value by a generated one now; the previous version stays valid for the grace period';

CREATE FUNCTION vault.rename_secret(name text, new_name text) RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_rename_secret';
COMMENT ON FUNCTION vault.rename_secret IS 'give a secret another name; needs the rights to read and delete the old one and to create the new one';

CREATE FUNCTION vault.roll_back_secret(name text, version int) RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_roll_back_secret';
COMMENT ON FUNCTION vault.roll_back_secret IS 'make a new version with the value of an earlier one, in grace or retained';

CREATE FUNCTION vault.delete_secret(name text, recovery_window interval DEFAULT '0') RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_delete_secret';
COMMENT ON FUNCTION vault.delete_secret IS 'destroy a secret and all its versions, now or when the recovery window is over';

CREATE FUNCTION vault.restore_secret(name text) RETURNS vault.secret_info
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_restore_secret';
COMMENT ON FUNCTION vault.restore_secret IS 'bring a deleted secret back with all its versions, within its recovery window';

CREATE FUNCTION vault.list_secrets(
    pattern text DEFAULT '*', after text DEFAULT NULL, max_rows int DEFAULT 1000, deleted boolean DEFAULT false)
    RETURNS SETOF vault.secret_info
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'vault_list_secrets';
COMMENT ON FUNCTION vault.list_secrets IS 'secrets in order of name, without values; pass the last name as "after" for the next page; deleted: those in their recovery window instead';

CREATE FUNCTION vault.list_versions(
    name text, OUT version int, OUT state text, OUT created_at timestamptz, OUT expires_at timestamptz, OUT kms_key_id text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 5 AS 'MODULE_PATHNAME', 'vault_list_versions';
COMMENT ON FUNCTION vault.list_versions IS 'the versions of a secret, newest first, and their state: current, grace or retained';

-- The vault carried elsewhere.
CREATE FUNCTION vault.export_sealed() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_export_sealed';
COMMENT ON FUNCTION vault.export_sealed IS 'the whole vault, sealed: opens only under the same master key';

CREATE FUNCTION vault.import_sealed(sealed jsonb) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_import_sealed';
COMMENT ON FUNCTION vault.import_sealed IS 'put an export into an empty vault, which takes over its id, or into the one it came from; returns how many secrets';

CREATE FUNCTION vault.status() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_status';
COMMENT ON FUNCTION vault.status IS 'state of the vault on this server: counts, worker, key service, cache, queue';

-- Runs once, here: wrong database or encoding is told at CREATE EXTENSION, not at the first use.
CREATE FUNCTION vault._check_install() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'vault_check_install';
COMMENT ON FUNCTION vault._check_install() IS 'raises 55000 where this database cannot hold the vault';
SELECT vault._check_install();
-- Who may do what. Functions that change it are for managers; who asks about himself gets an answer.

CREATE FUNCTION vault.create_role(
    name text, description text DEFAULT NULL, is_admin boolean DEFAULT false, permissions jsonb DEFAULT '[]')
    RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_create_role';
COMMENT ON FUNCTION vault.create_role IS 'create a vault role with rules of action and path; nobody grants what he does not hold';

CREATE FUNCTION vault.set_role_permissions(role text, permissions jsonb) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_set_role_permissions';
COMMENT ON FUNCTION vault.set_role_permissions IS 'replace the rules of a vault role; nobody adds what he does not hold';

CREATE FUNCTION vault.drop_role(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_drop_role';
COMMENT ON FUNCTION vault.drop_role IS 'drop a vault role with its rules, bindings and tokens';

CREATE FUNCTION vault.list_roles(
    OUT name text, OUT description text, OUT is_admin boolean, OUT permissions jsonb,
    OUT pg_roles text[], OUT inactive_pg_roles text[], OUT created_at timestamptz)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 20 AS 'MODULE_PATHNAME', 'vault_list_roles';
COMMENT ON FUNCTION vault.list_roles IS 'vault roles with their rules and bindings; to who does not manage the vault, those he has';

CREATE FUNCTION vault.can(action text, path text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'vault_can';
COMMENT ON FUNCTION vault.can IS 'whether the caller may do this to that name, or to all names that a path with * matches';

CREATE FUNCTION vault.bind_role(role text, pg_role regrole) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_bind_role';
COMMENT ON FUNCTION vault.bind_role IS 'give a vault role to a Postgres role, and to whoever has its privileges; nobody gives what he does not hold';

CREATE FUNCTION vault.unbind_role(role text, pg_role regrole) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_unbind_role';
COMMENT ON FUNCTION vault.unbind_role IS 'take a vault role from a Postgres role';

CREATE FUNCTION vault.rebind_roles(OUT role text, OUT pg_role text, OUT outcome text) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'vault_rebind_roles';
COMMENT ON FUNCTION vault.rebind_roles IS 'after a restore: bind again, by name, the Postgres roles that have another OID here; superuser only; and the roles of targets';

CREATE FUNCTION vault.create_token(name text, role text, expires_in interval DEFAULT NULL) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_create_token';
COMMENT ON FUNCTION vault.create_token IS 'create a token with the rights of a vault role; it is shown this once';

CREATE FUNCTION vault.revoke_token(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_revoke_token';
COMMENT ON FUNCTION vault.revoke_token IS 'end a token, in every session, at once';

CREATE FUNCTION vault.list_tokens(
    OUT name text, OUT role text, OUT prefix text, OUT created_at timestamptz, OUT created_by text,
    OUT expires_at timestamptz, OUT last_used_at timestamptz)
    RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 20 AS 'MODULE_PATHNAME', 'vault_list_tokens';
COMMENT ON FUNCTION vault.list_tokens IS 'tokens, without their text; to who does not manage the vault, the one he has shown';

CREATE FUNCTION vault.authenticate(token text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'vault_authenticate';
COMMENT ON FUNCTION vault.authenticate IS 'act with the rights of a token too, until the end of the transaction, while the current role stays the same';
-- The view, for those who come from supabase_vault or want to join. How it works and why: src/api/view.rs.

CREATE FUNCTION vault._visible(name text, allowed_ips cidr[], expires_at timestamptz, recover_until timestamptz)
    RETURNS boolean
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100 AS 'MODULE_PATHNAME', 'vault_visible';
COMMENT ON FUNCTION vault._visible IS 'whether the current role may read the secret of this row from where it is, and the secret is live';

-- STABLE and STRICT, so that the planner may take the view apart: a call is made for the rows of the result alone.
-- Constant arguments are refused, so EXPLAIN and the planner never open anything.
CREATE FUNCTION vault._open(id uuid, name text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 AS 'MODULE_PATHNAME', 'vault_open';
COMMENT ON FUNCTION vault._open IS 'the value behind a row of vault.decrypted_secrets; of no use elsewhere: see vault.read_secret()';

CREATE POLICY reading ON vault.secrets FOR SELECT TO vault_user, vault_reader, vault_admin
    USING (vault._visible(name, allowed_ips, expires_at, recover_until));
COMMENT ON POLICY reading ON vault.secrets IS 'rows behind vault.decrypted_secrets: secrets that the current role may read';
GRANT SELECT (id, name, description, allowed_ips, created_at, updated_at, expires_at, recover_until)
    ON vault.secrets TO vault_user, vault_reader, vault_admin;

CREATE VIEW vault.decrypted_secrets WITH (security_invoker = true) AS
    SELECT s.id, s.name, s.description, vault._open(s.id, s.name) AS decrypted_secret, s.created_at, s.updated_at
      FROM vault.secrets s
     -- Once more: row-level security does not hold a superuser.
     WHERE vault._visible(s.name, s.allowed_ips, s.expires_at, s.recover_until);
COMMENT ON VIEW vault.decrypted_secrets IS 'secrets that the current role may read; decrypted_secret is opened for the rows that a query returns';
REVOKE ALL ON vault.decrypted_secrets FROM PUBLIC;
GRANT SELECT ON vault.decrypted_secrets TO vault_user, vault_reader, vault_admin;
-- REVOKE first, then grant. Who may do what is decided inside the functions; these grants only say who may ask, so
-- that a refusal comes from the vault, with its reason.
DO $grants$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_catalog.pg_proc p
         WHERE p.pronamespace OPERATOR(pg_catalog.=) 'vault'::regnamespace
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
        IF NOT pg_catalog.starts_with((SELECT p.proname::text FROM pg_catalog.pg_proc p WHERE p.oid OPERATOR(pg_catalog.=) f), '_') THEN
            EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO vault_user, vault_reader, vault_admin', f);
        END IF;
    END LOOP;
    -- The policies and the view run these with the caller's rights. None of them gives away what he may not have.
    GRANT EXECUTE ON FUNCTION vault._inside(),
        vault._visible(text, cidr[], timestamptz, timestamptz), vault._open(uuid, text)
        TO vault_user, vault_reader, vault_admin;
    GRANT EXECUTE ON FUNCTION vault.status() TO pg_monitor;
    REVOKE ALL ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info FROM PUBLIC;
    GRANT USAGE ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info
        TO vault_service, vault_user, vault_reader, vault_admin, vault_auditor;
END
$grants$;
GRANT USAGE ON SCHEMA vault TO pg_monitor;
-- The auditor reads the log with his own statements, so the policy names him.
CREATE POLICY auditing ON vault.audit_log FOR SELECT TO vault_auditor USING (true);
COMMENT ON POLICY auditing ON vault.audit_log IS 'members of vault_auditor read the log';
GRANT SELECT ON vault.audit_log TO vault_auditor;
