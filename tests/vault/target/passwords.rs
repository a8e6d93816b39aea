//! Extensions that judge passwords: what they refuse is refused, and the former version stays.

use std::path::Path;
use std::process::Command;

use super::{agrees, builder, credential, logs_in, prepare, secret_for_svc, version};
use hyperion_vault_tests::{Ask, Cluster, sqlstate};

/// A library as some sites have it: passwords must come in the clear, so that they can be judged. It says what it was
/// given, which a good one would not.
const STRICT: &str = r#"
#include "postgres.h"
#include "fmgr.h"
#include "commands/user.h"
PG_MODULE_MAGIC;
static void judge(const char *role, const char *shadow, PasswordType type, Datum until, bool until_null)
{
    if (type != PASSWORD_TYPE_PLAINTEXT)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("hashed passwords are not allowed"),
                        errdetail("Role %s, given %s.", role, shadow)));
}
void _PG_init(void) { check_password_hook = judge; }
"#;

/// Compiles it against the server's headers, which building the extension needs as well.
fn strict_library(cluster: &Cluster, dir: &Path) -> String {
    let tools = cluster.toolchain();
    let output = Command::new(&tools.pg_config).arg("--includedir-server").output().expect("pg_config runs");
    let include = String::from_utf8(output.stdout).expect("a path");
    let (source, library) = (dir.join("strict.c"), dir.join("strict.so"));
    std::fs::write(&source, STRICT).expect("cannot write the source");
    let made = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
        .args(["-shared", "-fPIC", "-I", include.trim(), "-o"])
        .args([&library, &source])
        .status();
    assert!(made.expect("no C compiler").success());
    library.to_str().expect("a path of ours").to_owned()
}

#[test]
fn a_hook_that_refuses_hashed_passwords_is_told_of() {
    let cluster = builder().start();
    let dir = tempfile::Builder::new().prefix("hv-lib-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let library = strict_library(&cluster, dir.path());
    let vault = prepare(&cluster);
    drop(secret_for_svc(&vault));
    cluster.set_conf("session_preload_libraries", &library);

    let (mut ops, mut app) = (vault.ops(), vault.app());
    let mark = cluster.log_mark();
    let error = sqlstate!(ops.try_ask("SELECT vault.rotate_secret('db/svc')"), "38000",
        message: "the password of role \"svc\" could not be set", hint: "SCRAM verifiers");
    // Its own words hold the verifier: they are not passed on.
    assert!(error.detail().unwrap().contains("not repeated here"), "{error:?}");
    assert!(!format!("{error:?}").contains("SCRAM-SHA-256$"), "{error:?}");
    assert!(!cluster.log_since(mark).contains("SCRAM-SHA-256$"));
    assert_eq!(version(&mut ops, "db/svc"), 1);
    assert!(agrees(&cluster, &mut app, "db/svc"));
    // Control: the hook is there, for everybody.
    let own = "ALTER ROLE svc PASSWORD 'SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='";
    sqlstate!(vault.root().try_ask(own), "22023", message: "hashed passwords are not allowed");

    cluster.reset_conf("session_preload_libraries");
    vault.ops().ask("SELECT vault.rotate_secret('db/svc')");
    assert!(agrees(&cluster, &mut app, "db/svc"));
}

#[test]
fn passwordcheck_accepts_what_the_vault_makes() {
    let cluster = builder().conf("session_preload_libraries", "passwordcheck").start();
    let vault = prepare_under_passwordcheck(&cluster);
    let mut keeper = secret_for_svc(&vault);
    let mut app = vault.app();
    assert!(agrees(&cluster, &mut app, "db/svc"));
    keeper.ask("SELECT vault.rotate_secret('db/svc')");
    let (_, second) = credential(&mut app, "db/svc");
    // It hashes the user name to see whether that is the password.
    sqlstate!(keeper.try_ask("SELECT vault.update_secret('db/svc', password => 'svc')"), "38000",
        message: "could not be set", detail: "password must not");
    assert_eq!(version(&mut keeper, "db/svc"), 2);
    assert!(logs_in(&cluster, "svc", &second) && agrees(&cluster, &mut app, "db/svc"));
}

/// The same roles, but passwordcheck would not have the password that `svc` has of its own at first.
fn prepare_under_passwordcheck(cluster: &Cluster) -> hyperion_vault_tests::Vault<'_> {
    super::require_passwords(cluster);
    let vault = cluster.vault();
    let mut root = vault.root();
    let roles = super::ROLES.replace("'of its own'", "'0f 1ts own'");
    root.batch_execute(&roles).expect("cannot create the roles");
    assert!(!logs_in(cluster, "svc", "something else"));
    vault
}
