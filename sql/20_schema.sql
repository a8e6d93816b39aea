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
            DETAIL = CASE WHEN other OPERATOR(pg_catalog.=) 'supabase_vault'
                       THEN 'Both use schema "vault"; create_secret(name, value) of the one is create_secret(value, name) of the other.'
                       ELSE 'Both use schema "vault".' END,
            HINT = pg_catalog.format(
                     CASE WHEN other OPERATOR(pg_catalog.=) 'supabase_vault'
                       THEN 'Move its secrets as docs/migration.md describes, or run DROP EXTENSION %I, and then CREATE EXTENSION hyperion_vault.'
                       ELSE 'Run DROP EXTENSION %I, or move it to another schema if it can be moved, and then CREATE EXTENSION hyperion_vault.' END,
                     other);
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
GRANT USAGE ON SCHEMA vault TO vault_user, vault_reader, vault_admin, vault_auditor;
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
-- Sessions remember the id: whatever changes it in SQL tells them.
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
    rotation_retry_at timestamptz
);
-- With a condition that always holds: a foreign key cannot refer to such an index. A referential check is made as the
-- table's owner, whom row-level security does not keep out, and so would tell anybody with REFERENCES whether a name exists.
CREATE UNIQUE INDEX secrets_name_key ON vault.secrets (name) WHERE name IS NOT NULL;
-- Ciphertext does not compress; trying costs time on every write.
ALTER TABLE vault.secrets ALTER COLUMN sealed SET STORAGE EXTERNAL, ALTER COLUMN wrapped_dek SET STORAGE EXTERNAL;
-- Room in each page for the next versions of its rows, so that an update makes no index entries as a rule.
ALTER TABLE vault.secrets SET (fillfactor = 80);
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
COMMENT ON TABLE vault.secret_versions IS 'superseded versions, sealed: in grace until expires_at, then retained for rolling back';

-- What the workers look for, derived from the rows of the two tables above: one row for each date that a secret has. Not
-- indexes of those tables: a secret without dates costs nothing more, and no expression is evaluated when one is written.
-- Not dumped: the triggers below make the rows anew when the secrets are restored.
CREATE TABLE vault.secret_dates (
    secret_id uuid NOT NULL,
    kind smallint NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT secret_dates_pkey PRIMARY KEY (secret_id, kind)
);
CREATE INDEX secret_dates_at_idx ON vault.secret_dates (kind, at, secret_id);
COMMENT ON TABLE vault.secret_dates IS 'when a worker looks at a secret; derived from vault.secrets and vault.secret_versions';
COMMENT ON COLUMN vault.secret_dates.kind IS '1: rotation; 2: rotation, the target is a function; 3: expiry, or end of the recovery window; 4: first end of a grace period';

CREATE TABLE vault.target_roles (
    role oid NOT NULL,
    secret_id uuid NOT NULL,
    CONSTRAINT target_roles_pkey PRIMARY KEY (role, secret_id)
);
COMMENT ON TABLE vault.target_roles IS 'Postgres roles that are a target of a secret; derived from vault.secrets';

-- For what a superuser does in SQL, such as a restore, and for logical replication: the extension's own changes fire no
-- triggers and keep the derived tables by themselves.
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

-- What is derived is nobody else's to write: what logical replication brings of it, or a superuser's SQL, is passed over.
CREATE FUNCTION vault._keep_derived() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION vault._keep_derived() IS 'leaves rows of a derived table as they are';
REVOKE ALL ON FUNCTION vault._keep_derived() FROM PUBLIC;
CREATE TRIGGER keep_derived BEFORE INSERT OR UPDATE OR DELETE ON vault.secret_dates
    FOR EACH ROW EXECUTE FUNCTION vault._keep_derived();
CREATE TRIGGER keep_derived BEFORE INSERT OR UPDATE OR DELETE ON vault.target_roles
    FOR EACH ROW EXECUTE FUNCTION vault._keep_derived();
ALTER TABLE vault.secret_dates ENABLE ALWAYS TRIGGER keep_derived;
ALTER TABLE vault.target_roles ENABLE ALWAYS TRIGGER keep_derived;

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
