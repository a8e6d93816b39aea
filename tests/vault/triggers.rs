//! Code of others on the vault's tables: a stray TRIGGER privilege must not lend the extension's rights. Runs in the
//! test process.
//!
//! The trap: row-level security and table privileges say nothing about triggers, and a trigger's function runs inside
//! the statement, where the flag behind every policy is up. The control shows that the function would have run.

use hyperion_vault_tests::{Client, Cluster, sqlstate};

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
    root.batch_execute(
        "GRANT USAGE ON SCHEMA vault TO nobody_special;
         GRANT ALL ON ALL TABLES IN SCHEMA vault TO nobody_special;
         CREATE SCHEMA spy AUTHORIZATION nobody_special;",
    )
    .expect("the stray grants");
    ops.batch_execute("SELECT vault.create_secret(name => 'a/b', value => 'first')")
        .expect("before any trigger");
    let mut nobody = vault.nobody();
    nobody.batch_execute(SPY).expect("his own schema");

    let writes = [
        "SELECT vault.create_secret(name => 'c/d', value => 'x')",
        "SELECT vault.put_secret(name => 'a/b', value => 'second')",
        "SELECT vault.update_secret(name => 'a/b', description => 'x')",
        "SELECT vault.delete_secret(name => 'a/b')",
    ];
    for (table, kind) in [
        ("secrets", "TRIGGER t AFTER INSERT OR UPDATE OR DELETE"),
        ("secret_versions", "TRIGGER t BEFORE INSERT OR DELETE"),
        ("secrets", "CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE OR DELETE"),
    ] {
        let each = if table == "secrets" { "FOR EACH ROW" } else { "FOR EACH STATEMENT" };
        let sql = format!("CREATE {kind} ON vault.{table} {each} EXECUTE FUNCTION spy.look()");
        nobody.batch_execute(&sql).expect("the grant allows it");
        for write in writes {
            sqlstate!(ops.batch_execute(write), "55000", message: table, detail: "\"t\"", hint: "Drop the trigger");
        }
        assert_eq!(seen(&mut root), 0, "{kind}");
        let value: String =
            app.query_one("SELECT vault.read_secret(name => 'a/b')", &[]).expect("reading").get(0);
        assert_eq!(value, "first");
        root.batch_execute(&format!("DROP TRIGGER t ON vault.{table}")).expect("the owner drops it");
    }

    // The control: the function does run for a statement that does not go through the extension.
    nobody
        .batch_execute(
            "CREATE TRIGGER t AFTER UPDATE ON vault.secrets FOR EACH STATEMENT EXECUTE FUNCTION spy.look()",
        )
        .expect("the grant allows it");
    root.batch_execute("UPDATE vault.secrets SET description = 'by a superuser'")
        .expect("bypasses the policies");
    assert_eq!(seen(&mut root), 1);
    root.batch_execute("DROP TRIGGER t ON vault.secrets").expect("the owner drops it");
    for write in writes {
        ops.batch_execute(write).expect("writes go on");
    }
}
