-- The view, for those who come from supabase_vault or want to join. How it works and why: src/api/view.rs.

-- What a query scans is no table of the vault but a foreign table, whose rows come from code of the extension: those
-- that the current role may read, and nothing else is to be seen of the others.
CREATE FUNCTION vault._secrets_handler() RETURNS fdw_handler
    LANGUAGE c AS 'MODULE_PATHNAME', 'vault_secrets_handler';
COMMENT ON FUNCTION vault._secrets_handler IS 'scans the foreign table behind vault.decrypted_secrets';

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

-- STABLE and STRICT, so that the planner may take the view apart: a call is made for the rows of the result alone.
-- Constant arguments are refused, so EXPLAIN and the planner never open anything.
CREATE FUNCTION vault._open(id uuid, name text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 AS 'MODULE_PATHNAME', 'vault_open';
COMMENT ON FUNCTION vault._open IS 'the value behind a row of vault.decrypted_secrets; of no use elsewhere: see vault.read_secret()';

-- Not security_invoker: the owner's right to the foreign table is enough, so callers need none. Functions in it, and the
-- scan, run as the caller all the same.
CREATE VIEW vault.decrypted_secrets AS
    SELECT s.id, s.name, s.description, vault._open(s.id, s.name) AS decrypted_secret, s.created_at, s.updated_at
      FROM vault._readable s;
COMMENT ON VIEW vault.decrypted_secrets IS 'secrets that the current role may read; decrypted_secret is opened for the rows that a query returns';
REVOKE ALL ON vault.decrypted_secrets FROM PUBLIC;
GRANT SELECT ON vault.decrypted_secrets TO vault_user, vault_reader, vault_admin;
