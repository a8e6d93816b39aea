//! Triggers with a stranger's code, of every kind and of every name on every table: a stray TRIGGER privilege does not make
//! one, and if a superuser did, no operation runs it.

use super::hostile_kinds::column;
use super::{
    TABLES, builder, call_everything, call_everything_in_a_transaction, give_work, make_manager, until_worked,
};
use hyperion_vault_tests::{Ask, lend};

/// Names of the extension's own triggers, and one that is nobody's.
const NAMES: [&str; 6] = [
    "access_changed",
    "access_truncated",
    "identity_changed",
    "refuse_truncate",
    "aaa",
    "RI_ConstraintTrigger_a_1",
];

const KINDS: [&str; 12] = [
    "TRIGGER N BEFORE INSERT OR UPDATE OR DELETE ON T FOR EACH ROW",
    "TRIGGER N AFTER INSERT OR UPDATE OR DELETE ON T FOR EACH ROW",
    "TRIGGER N BEFORE INSERT OR UPDATE OR DELETE ON T FOR EACH STATEMENT",
    "TRIGGER N AFTER INSERT OR UPDATE OR DELETE ON T FOR EACH STATEMENT",
    "TRIGGER N BEFORE TRUNCATE ON T FOR EACH STATEMENT",
    "TRIGGER N AFTER INSERT ON T REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
    "TRIGGER N AFTER UPDATE ON T REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH ROW",
    "TRIGGER N AFTER DELETE ON T REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT",
    "TRIGGER N BEFORE INSERT OR UPDATE ON T FOR EACH ROW WHEN (mine.condition(new))",
    "CONSTRAINT TRIGGER N AFTER INSERT OR UPDATE OR DELETE ON T FOR EACH ROW",
    "CONSTRAINT TRIGGER N AFTER INSERT OR UPDATE OR DELETE ON T DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW",
    "CONSTRAINT TRIGGER N AFTER INSERT OR UPDATE OR DELETE ON T DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
];

#[test]
fn no_operation_runs_a_strangers_trigger() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    give_work(&mut root, "before");
    root.ask(
        "CREATE ROLE eve LOGIN; CREATE SCHEMA mine AUTHORIZATION eve; GRANT USAGE ON SCHEMA vault TO eve;
         GRANT TRIGGER ON ALL TABLES IN SCHEMA vault TO eve",
    );
    let mut eve = vault.session("eve");
    // A sequence moves whatever becomes of the transaction.
    eve.ask(
        "GRANT USAGE ON SCHEMA mine TO PUBLIC; CREATE SEQUENCE mine.canary; GRANT ALL ON mine.canary TO PUBLIC;
         CREATE FUNCTION mine.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_catalog.nextval('mine.canary'); RETURN coalesce(new, old); END $$;
         CREATE FUNCTION mine.condition(record) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_catalog.nextval('mine.canary'); RETURN true; END $$",
    );
    let mut made = 0;
    for table in TABLES {
        let own =
            root.ask(&format!("SELECT tgname FROM pg_trigger WHERE tgrelid = 'vault.{table}'::regclass"));
        for (i, kind) in KINDS.iter().enumerate() {
            let trigger =
                kind.replace(" N ", &format!(" kind_{i} ")).replace(" T ", &format!(" vault.{table} "));
            lend(&mut eve, &mut root, &format!("CREATE {trigger} EXECUTE FUNCTION mine.fire()"));
            made += 1;
        }
        for (i, name) in NAMES.iter().enumerate().filter(|(_, name)| !own.lines().any(|own| own == **name)) {
            let kind = KINDS[[1, 11, 0][i % 3]];
            let trigger =
                kind.replace(" N ", &format!(" \"{name}\" ")).replace(" T ", &format!(" vault.{table} "));
            lend(&mut eve, &mut root, &format!("CREATE {trigger} EXECUTE FUNCTION mine.fire()"));
            made += 1;
        }
    }
    assert!(made > 150, "{made}");

    let fired = "SELECT is_called FROM mine.canary";
    for who in ["manager", "postgres"] {
        let mut client = vault.session(who);
        call_everything(&mut client);
        assert_eq!(root.ask(fired), "f", "{who}");
        call_everything_in_a_transaction(&mut client);
        assert_eq!(root.ask(fired), "f", "{who}, in a transaction");
    }
    give_work(&mut root, "after");
    for name in ["before", "after"] {
        until_worked(&vault, name);
    }
    assert_eq!(root.ask(fired), "f", "the workers");
    // What was written is there, as if there were no triggers.
    root.ask("SELECT vault.create_secret('kept', 'one'); SELECT vault.put_secret('kept', 'two')");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('kept')"), "two");
    assert_eq!(root.ask(fired), "f");

    // The control: they are triggers, and a superuser's own statement runs them.
    for table in TABLES {
        let column = column(&mut root, table);
        root.ask(&format!(
            "ALTER SEQUENCE mine.canary RESTART; UPDATE vault.{table} SET {column} = {column} WHERE false"
        ));
        assert_eq!(root.ask(fired), "t", "{table}");
    }
}
