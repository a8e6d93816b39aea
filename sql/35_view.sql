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
