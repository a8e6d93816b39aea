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
        -- The planner is told nothing of names: before 17 it would estimate for anybody, before anything is refused. Auditors
        -- search the log by its other columns.
        EXECUTE (SELECT pg_catalog.format('ALTER TABLE vault.%I %s', t,
                     pg_catalog.string_agg(pg_catalog.format('ALTER COLUMN %I SET STATISTICS 0', a.attname), ', ' ORDER BY a.attnum))
                   FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.format('vault.%I', t)::regclass
                    AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
                    AND (t OPERATOR(pg_catalog.<>) 'audit_log'
                         OR a.attname OPERATOR(pg_catalog.=) ANY (ARRAY['subject', 'detail', 'token', 'role', 'session_role']::name[])));
        IF t OPERATOR(pg_catalog.<>) ALL (ARRAY['secret_dates', 'target_roles']) THEN
            PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('vault.%I', t)::regclass, '');
        END IF;
    END LOOP;
END
$guards$;
