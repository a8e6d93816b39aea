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
