//! Code of others on the vault's tables: it has nobody's rights but the caller's own, since the extension's writes fire no
//! triggers, not even those that a superuser made for a stranger. Runs in the test process.
//!
//! The trap: a trigger that would not have fired anyway. For each kind a control shows that it does, for a superuser's
//! statement. Every kind of code, on every table: storage/hostile_kinds.rs.

use hyperion_vault_tests::{Ask, Client, Cluster, lend};

const SPY: &str = "CREATE TABLE spy.seen (line text);
    CREATE FUNCTION spy.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO spy.seen VALUES (concat_ws(' ', TG_OP, current_user));
        RETURN NULL;
    END $$;
    GRANT USAGE ON SCHEMA spy TO PUBLIC;
    GRANT INSERT ON spy.seen TO PUBLIC;";

fn seen(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM spy.seen", &[]).expect("cannot count").get(0)
}

#[test]
fn a_foreign_trigger_never_runs_with_the_extensions_rights() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops, mut app) = (vault.root(), vault.ops(), vault.app());
    root.ask(
        "GRANT USAGE ON SCHEMA vault TO nobody_special;
         GRANT ALL ON ALL TABLES IN SCHEMA vault TO nobody_special;
         CREATE SCHEMA spy AUTHORIZATION nobody_special",
    );
    let mut nobody = vault.nobody();
    nobody.batch_execute(SPY).expect("their own schema");

    let every = "INSERT OR UPDATE OR DELETE";
    for (table, kind, each) in [
        ("secrets", format!("TRIGGER t AFTER {every}"), "ROW"),
        ("secrets", format!("TRIGGER t BEFORE {every}"), "STATEMENT"),
        ("secret_versions", format!("TRIGGER t BEFORE {every}"), "STATEMENT"),
        ("secret_versions", format!("TRIGGER t BEFORE {every}"), "ROW"),
        ("secrets", format!("CONSTRAINT TRIGGER t AFTER {every}"), "ROW"),
        ("secrets", format!("CONSTRAINT TRIGGER t AFTER {every}"), "DEFERRED"),
    ] {
        let each = match each {
            "DEFERRED" => "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW".to_owned(),
            each => format!("FOR EACH {each}"),
        };
        let sql = format!("CREATE {kind} ON vault.{table} {each} EXECUTE FUNCTION spy.look()");
        lend(&mut nobody, &mut root, &sql);
        for (write, version) in [
            (
                "SELECT version FROM vault.create_secret(name => 'a/b', value => 'first', grace_period => '1 hour')",
                "1",
            ),
            ("SELECT version FROM vault.put_secret(name => 'a/b', value => 'second')", "2"),
            ("SELECT version FROM vault.update_secret(name => 'a/b', description => 'x')", "2"),
            ("SELECT version FROM vault.roll_back_secret(name => 'a/b', version => 1)", "3"),
        ] {
            assert_eq!(ops.ask(write), version, "{kind}: {write}");
        }
        // The trigger returns NULL, which would have kept a BEFORE ROW trigger's row from being written.
        assert_eq!(
            app.ask("SELECT vault.read_secret('a/b'), vault.read_secret('a/b', 2)"),
            "first|second",
            "{kind}"
        );
        assert_eq!(seen(&mut root), 0, "{kind}");

        // The control: the function does run for a statement that does not go through the extension.
        root.ask(&format!(
            "BEGIN; INSERT INTO vault.secrets SELECT (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid(), 'name', 'x'))).* FROM vault.secrets s;
             UPDATE vault.{table} SET version = version; SET CONSTRAINTS ALL IMMEDIATE"
        ));
        assert_ne!(seen(&mut root), 0, "{kind}");
        root.ask("ROLLBACK");

        ops.ask("SELECT vault.delete_secret(name => 'a/b')");
        assert_eq!(seen(&mut root), 0, "{kind}");
        assert_eq!(
            root.ask(
                "SELECT (SELECT count(*) FROM vault.secrets), (SELECT count(*) FROM vault.secret_versions)"
            ),
            "0|0"
        );
        root.ask(&format!("DROP TRIGGER t ON vault.{table}"));
    }
}
