//! What a review found: a session that runs out of memory, and writing inside a parallel plan. Runs in the test process.

use hyperion_vault_tests::{Ask, Cluster, PATIENCE, backend_pid, sqlstate};

/// Kilobytes a process has mapped.
fn mapped(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Rust aborts when an allocation fails, and an abort restarts the whole server. Which allocation is the one that fails,
/// the server's own (an ERROR) or one of ours, depends on how much is left: so little by little.
#[test]
fn a_session_without_memory_ends_alone() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let mut witness = cluster.witness();
    root.ask("CREATE TABLE public.large AS SELECT repeat('abcdefgh', 131000) AS value; GRANT SELECT ON public.large TO PUBLIC");
    let mut ended = 0;
    for left in (0..8000).step_by(250) {
        let mut session = vault.ops();
        let pid = backend_pid(&mut session);
        // What is made once per session is there before the limit is. The large value is not touched before: memory it
        // gave back would hide the limit.
        session.ask("SELECT vault.put_secret('small', 'value')");
        let mark = cluster.log_mark();
        let limit = (mapped(pid) + left) * 1024;
        // As the server's user, who may do that to his own processes.
        // It reads what it is sent first: with nobody to send it to, COPY fails.
        root.ask(&format!("COPY (SELECT) TO PROGRAM 'cat >/dev/null; prlimit --pid {pid} --as={limit}'"));
        let sealed = session.try_ask("SELECT vault.put_secret('large', (SELECT value FROM public.large))");
        match sealed {
            Err(error) if error.as_db_error().is_some_and(|e| e.severity() == "ERROR") => {
                sqlstate!(Err::<(), _>(error), "53200", message: "out of memory");
            }
            // The report of a FATAL and the end of the connection reach the client in either order: the log tells.
            Err(_) => {
                cluster.wait_for_log(mark, "out of memory in hyperion_vault", PATIENCE);
                ended += 1;
            }
            Ok(_) => {}
        }
        witness.assert_survived();
        if ended >= 2 {
            break;
        }
    }
    assert!(ended > 0, "no allocation of the extension's own has failed: the test shows nothing");
    assert_eq!(root.ask("SELECT vault.read_secret('small')"), "value");
}

#[test]
fn nothing_is_written_in_a_parallel_plan() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    root.ask(
        "SELECT vault.create_secret('a', 'v');
         CREATE TABLE public.many AS SELECT n FROM generate_series(1, 1000) n; GRANT SELECT ON public.many TO PUBLIC",
    );
    let calls_before = root.ask("SELECT vault.status() #>> '{kms,calls}'");
    for leader in ["on", "off"] {
        ops.ask(&format!(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
             SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = {leader}"
        ));
        for call in [
            "create_secret('b' || n, 'v')",
            "put_secret('a', 'w')",
            "update_secret('a', 'w')",
            "rotate_secret('a')",
            "delete_secret('a')",
        ] {
            ops.ask(&format!(
                "CREATE OR REPLACE FUNCTION pg_temp.liar(n int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
                 $$ BEGIN PERFORM vault.{call}; RETURN ''; END $$"
            ));
            let written = ops.try_ask("SELECT count(pg_temp.liar(n)) FROM public.many");
            sqlstate!(written, "25006", message: "during a parallel operation", hint: "PARALLEL UNSAFE");
        }
    }
    assert_eq!(root.ask("SELECT vault.read_secret('a')"), "v");
    assert_eq!(root.ask("SELECT count(*) FROM vault.list_secrets()"), "1");
    assert_eq!(root.ask("SELECT vault.status() #>> '{kms,calls}'"), calls_before, "no key was asked for");
}
