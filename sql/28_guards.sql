-- What every table of the vault has: no rights for anybody, forced row-level security that admits nobody (superusers and
-- roles with BYPASSRLS pass, as everywhere), a guard against TRUNCATE, and its place in dumps unless it is derived.
DO $guards$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vault_meta', 'secrets', 'secret_versions', 'secret_dates', 'target_roles',
                           'roles', 'role_permissions', 'role_bindings', 'tokens',
                           'audit_log', 'audit_spools', 'audit_pending'] LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON vault.%I FROM PUBLIC', t);
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON vault.%I EXECUTE FUNCTION vault._refuse_truncate()', t);
        -- Always: session_replication_role = replica skips ordinary triggers.
        EXECUTE pg_catalog.format('ALTER TABLE vault.%I ENABLE ALWAYS TRIGGER refuse_truncate', t);
        IF t OPERATOR(pg_catalog.<>) ALL (ARRAY['secret_dates', 'target_roles']) THEN
            PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('vault.%I', t)::regclass, '');
        END IF;
    END LOOP;
END
$guards$;
