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
    -- The view runs it with the caller's rights. It gives away nothing that the caller may not have.
    GRANT EXECUTE ON FUNCTION vault._open(uuid, text) TO vault_user, vault_reader, vault_admin;
    GRANT EXECUTE ON FUNCTION vault.status() TO pg_monitor;
    REVOKE ALL ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info FROM PUBLIC;
    GRANT USAGE ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info
        TO vault_user, vault_reader, vault_admin, vault_auditor;
END
$grants$;
GRANT USAGE ON SCHEMA vault TO pg_monitor;
-- Auditors read the log with their own statements: the only policy on a table of the vault.
CREATE POLICY auditing ON vault.audit_log FOR SELECT TO vault_auditor USING (true);
COMMENT ON POLICY auditing ON vault.audit_log IS 'members of vault_auditor read the log';
GRANT SELECT ON vault.audit_log TO vault_auditor;
