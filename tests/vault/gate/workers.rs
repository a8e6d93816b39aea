//! Background workers: `internal` in the allowlist. The one that runs SQL of others in every PostgreSQL is logical
//! replication's: a trigger on a subscribed table is run by the apply worker.

use super::text;
use hyperion_vault_tests::{Client, Cluster, PATIENCE, wait_for};

/// Sends one job through replication and returns what its trigger was told.
fn answer(source: &mut Client, target: &mut Client, job: i32) -> String {
    source.execute("INSERT INTO jobs VALUES ($1)", &[&job]).unwrap();
    let mut told = None;
    wait_for("the job to be applied", 2 * PATIENCE, || {
        told =
            target.query_opt("SELECT told FROM answers WHERE n = $1", &[&job]).unwrap().map(|row| row.get(0));
        told.is_some()
    });
    told.expect("waited for")
}

#[test]
fn an_apply_worker_is_internal() {
    let cluster = Cluster::builder().conf("wal_level", "logical").start();
    let vault = cluster.vault();
    let mut target = vault.root();
    target.batch_execute("CREATE DATABASE source").unwrap();
    let mut source = cluster.connect("postgres", "source");
    source
        .batch_execute("CREATE TABLE jobs (n int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE jobs")
        .unwrap();
    // Made beforehand: a subscription to its own cluster cannot make its slot.
    source.batch_execute("SELECT pg_create_logical_replication_slot('jobs', 'pgoutput')").unwrap();
    target
        .batch_execute(
            "SELECT vault.create_secret('job', 'value for jobs');
             CREATE TABLE jobs (n int PRIMARY KEY);
             CREATE TABLE answers (n int PRIMARY KEY, told text NOT NULL);
             CREATE FUNCTION work() RETURNS trigger LANGUAGE plpgsql AS $$
             DECLARE detail text; BEGIN
               INSERT INTO public.answers VALUES (new.n, vault.read_secret('job'));
               RETURN NULL;
             EXCEPTION WHEN OTHERS THEN
               GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
               INSERT INTO public.answers VALUES (new.n, SQLSTATE || ' ' || detail);
               RETURN NULL;
             END $$;
             CREATE TRIGGER work AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION work();
             ALTER TABLE jobs ENABLE ALWAYS TRIGGER work;",
        )
        .unwrap();
    target
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host={} port={} dbname=source user=postgres' PUBLICATION p
             WITH (create_slot = false, slot_name = 'jobs', copy_data = false)",
            cluster.socket_dir().display(),
            cluster.port()
        ))
        .unwrap();

    // The worker's own connection goes over the socket, but it is no client of ours.
    let told = answer(&mut source, &mut target, 1);
    assert!(told.starts_with("42501 ") && told.contains("(internal)"), "{told}");
    let kind = text(
        &mut target,
        "SELECT backend_type FROM pg_stat_activity a JOIN pg_stat_subscription s USING (pid)",
    );
    assert!(told.contains(&kind), "{told} does not name {kind}");

    for (job, (list, allowed)) in [
        ("internal".to_owned(), true),
        ("local, 127.0.0.1".to_owned(), false),
        (format!("internal:\"{kind}\""), true),
        ("internal:\"another worker\"".to_owned(), false),
        (String::new(), false),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.set_conf("hyperion_vault.allowed_ips", &list);
        let told = answer(&mut source, &mut target, job as i32 + 2);
        assert_eq!(told == "value for jobs", allowed, "{list:?}: {told}");
        assert!(allowed || told.starts_with("42501 "), "{list:?}: {told}");
    }

    // A secret's own list has no place for workers.
    cluster.set_conf("hyperion_vault.allowed_ips", "internal");
    target.batch_execute("SELECT vault.update_secret('job', allowed_ips => '{0.0.0.0/0,::/0}')").unwrap();
    let told = answer(&mut source, &mut target, 90);
    assert!(told.starts_with("42501 ") && told.contains("the secret's allowed_ips"), "{told}");
}
