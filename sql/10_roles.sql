-- The group roles a vault is used through, and the one for services' own logins.
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

COMMENT ON ROLE vault_service IS 'hyperion_vault: the group of services'' own logins; no right on any table';
COMMENT ON ROLE vault_user IS 'hyperion_vault: may call the API; sees only what policies allow';
COMMENT ON ROLE vault_reader IS 'hyperion_vault: may read and verify every secret';
COMMENT ON ROLE vault_admin IS 'hyperion_vault: manages everything, reads no value';
COMMENT ON ROLE vault_auditor IS 'hyperion_vault: reads the audit log';
