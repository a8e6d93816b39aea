//! No message quotes a value: whatever argument a caller puts his secret into by mistake. Runs in the test process.
//!
//! Two places are excepted because they are not values: the *name* of a secret, which errors are about ("secret "x"
//! does not exist") as long as it is a possible name; and what Postgres' own input functions refuse before a call
//! reaches the vault (a text that is no enum label, no JSON, no address). The trap: a value that is refused in the
//! client. Every call here must come back with an error of the server.

use hyperion_vault_tests::scan::{Needles, assert_none};
use hyperion_vault_tests::{Client, Cluster, LogMark, PATIENCE, expect_error, random_text};
use postgres::types::ToSql;

/// A call that must fail, with bound parameters.
struct Call<'a> {
    sql: &'a str,
    parameters: &'a [&'a (dyn ToSql + Sync)],
    sqlstate: &'a str,
}

/// Runs it and looks at all that the error carries.
#[track_caller]
fn refused(client: &mut Client, needles: &Needles, call: &Call<'_>) {
    let error = expect_error(client.query(call.sql, call.parameters), call.sqlstate);
    let texts = [Some(error.message()), error.detail(), error.hint(), error.where_(), error.constraint()];
    for text in texts.into_iter().flatten() {
        assert_none(&needles.in_bytes(call.sql, text.as_bytes()));
    }
    // And whatever else the protocol's error carries, such as an internal query.
    assert_none(&needles.in_bytes(call.sql, format!("{error:?}").as_bytes()));
}

#[test]
fn no_error_quotes_a_value() {
    // The log says nothing of parameters by default, and no statement with them; what it says of errors is searched.
    let cluster = Cluster::builder().conf("log_min_error_statement", "panic").start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    let secret = random_text(24);
    let long = format!("{secret}{}", random_text(1_100_000));
    let json = format!("\"{secret}\"");
    let object = format!("{{\"length\": \"{secret}\"}}");
    let spaced = format!("{{\"charset\": \"{secret} {secret}\"}}");
    let twice = format!("{{\"charset\": \"{secret}{secret}\"}}");
    let needles = Needles::new([("the secret", secret.clone()), ("a long one", long.clone())]);
    let put = "SELECT vault.put_secret(name => $1, value => $2)";
    ops.query(put, &[&"opaque", &secret]).unwrap();
    let create = "SELECT vault.create_secret(name => 'userpass', username => 'u', password => $1)";
    ops.query(create, &[&secret]).unwrap();

    let s: &(dyn ToSql + Sync) = &secret;
    let invalid = [
        // Values in their own place, refused for another reason.
        ("SELECT vault.create_secret('x', value => $1, username => $1, password => $1)", s),
        ("SELECT vault.create_secret('x', value => $1, username => 'u')", s),
        ("SELECT vault.create_secret('x', value => $1, kind => 'automatic')", s),
        ("SELECT vault.create_secret('x', value => $1, keep_versions => -1)", s),
        ("SELECT vault.create_secret('x', value => $1, grace_period => '-1 day')", s),
        ("SELECT vault.create_secret('x', value => $1, allowed_ips => ARRAY[NULL::cidr])", s),
        ("SELECT vault.create_secret('x', value => $1)", &long),
        ("SELECT vault.create_secret('x', username => 'u', password => $1)", &long),
        ("SELECT vault.create_secret('x', password => $1)", s),
        ("SELECT vault.create_secret('x', username => $1)", s),
        ("SELECT vault.create_secret('', value => $1)", s),
        ("SELECT vault.create_secret(NULL, value => $1)", s),
        ("SELECT vault.put_secret('a//b', $1)", s),
        ("SELECT vault.put_secret('x', $1, expected_version => -1)", s),
        ("SELECT vault.put_secret('x', $1)", &long),
        ("SELECT vault.put_secret('userpass', $1)", s),
        ("SELECT vault.update_secret('userpass', value => $1)", s),
        ("SELECT vault.update_secret('opaque', username => $1)", s),
        ("SELECT vault.update_secret('opaque', password => $1)", s),
        ("SELECT vault.update_secret('opaque', value => $1, password => $1)", s),
        // In another argument's place.
        ("SELECT vault.create_secret('x', value => 'v', description => $1)", &long),
        ("SELECT vault.create_secret('x', username => $1, password => 'p')", &long),
        ("SELECT vault.create_secret('x', username => $1 || chr(7), password => 'p')", s),
        ("SELECT vault.create_secret('x', value => 'v', metadata => ($1::text)::jsonb)", &json),
        ("SELECT vault.create_secret('x', generator => ($1::text)::jsonb)", &json),
        ("SELECT vault.create_secret('x', generator => ($1::text)::jsonb)", &object),
        ("SELECT vault.create_secret('x', generator => ($1::text)::jsonb)", &spaced),
        ("SELECT vault.create_secret('x', generator => ($1::text)::jsonb)", &twice),
        ("SELECT vault.update_secret('opaque', reset => ARRAY[$1])", s),
        ("SELECT vault.update_secret('opaque', description => 'd', reset => ARRAY['metadata', $1])", s),
        // In the name's place, where it makes no possible name.
        ("SELECT vault.put_secret($1 || '*', 'x')", s),
        ("SELECT vault.put_secret($1 || '/../y', 'x')", s),
        ("SELECT vault.put_secret($1 || chr(10), 'x')", s),
        ("SELECT vault.put_secret($1, 'x')", &long),
        ("SELECT vault.delete_secret($1 || '/')", s),
        ("SELECT vault.rotate_secret('/' || $1)", s),
        ("SELECT * FROM vault.list_versions($1 || '//x')", s),
        ("SELECT * FROM vault.list_secrets($1 || chr(9))", s),
        ("SELECT * FROM vault.list_secrets($1)", &long),
        ("SELECT * FROM vault.list_secrets('*', $1, 0)", s),
    ];
    for (sql, parameter) in invalid {
        refused(&mut ops, &needles, &Call { sql, parameters: &[parameter], sqlstate: "22023" });
    }
    let others = [
        ("SELECT vault.create_secret('opaque', value => $1)", "23505"),
        ("SELECT vault.put_secret('opaque', $1, expected_version => 7)", "55000"),
        ("SELECT vault.update_secret('opaque', value => $1, expected_version => 7)", "55000"),
        ("SELECT vault.update_secret('none', value => $1)", "P0002"),
        ("SELECT vault.verify('opaque', $1)", "42501"),
    ];
    for (sql, sqlstate) in others {
        refused(&mut ops, &needles, &Call { sql, parameters: &[s], sqlstate });
    }
    let mut app = vault.app();
    for (sql, sqlstate) in [
        ("SELECT vault.verify('none', $1)", "P0002"),
        ("SELECT vault.verify('a*b', $1)", "22023"),
        ("SELECT vault.verify(NULL, $1)", "22023"),
        ("SELECT vault.put_secret('opaque', $1)", "42501"),
        ("SELECT vault.create_secret('y', value => $1)", "42501"),
        ("SELECT vault.read_secret($1 || '*')", "22023"),
    ] {
        refused(&mut app, &needles, &Call { sql, parameters: &[s], sqlstate });
    }
    refused(
        &mut vault.nobody(),
        &needles,
        &Call { sql: "SELECT vault.put_secret('opaque', $1)", parameters: &[s], sqlstate: "42501" },
    );
    let mut standing_still = vault.ops();
    standing_still.batch_execute("SET default_transaction_read_only = on").unwrap();
    let call = Call { sql: "SELECT vault.put_secret('opaque', $1)", parameters: &[s], sqlstate: "25006" };
    refused(&mut standing_still, &needles, &call);
    // When the key service fails, in each way.
    for (faults, sqlstate) in [
        ("fail=refused", "38000"),
        ("fail=unreachable", "08006"),
        ("fail=internal", "XX000"),
        ("panic=1", "XX000"),
    ] {
        cluster.set_conf("hyperion_vault.kms_max_retries", "0");
        cluster.set_faults(faults);
        refused(
            &mut ops,
            &needles,
            &Call { sql: "SELECT vault.put_secret('opaque', $1)", parameters: &[s], sqlstate },
        );
    }
    cluster.clear_faults();

    // The log has had all of these errors, and a control that follows them.
    let _ = app.query("SELECT vault.read_secret('the-last-control')", &[]);
    cluster.wait_for_log(LogMark::START, "the-last-control", PATIENCE);
    assert!(cluster.log_contains(LogMark::START, "ERROR:  secret value is too long"));
    assert_none(&needles.in_path(&cluster.log_path()));
}
