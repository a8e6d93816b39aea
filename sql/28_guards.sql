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
