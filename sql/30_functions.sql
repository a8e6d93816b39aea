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
