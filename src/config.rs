//! Every setting of the extension, one line each, under the reserved prefix `hyperion_vault.`.
//!
//! Defined in the postmaster at preload; read in every process, main thread. No secret is ever a setting's value.
//! The trap it avoids: a check that needs the file system or the network. Those belong to the worker, which says
//! what it found when it is asked.

use std::cell::RefCell;
use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use hyperion_vault_core::ipc::Inbox;
use hyperion_vault_core::policy::Allowlist;
use hyperion_vault_core::secret::InvalidArgument;
use hyperion_vault_kms::{AwsConfig, Limits, LocalConfig, ProviderConfig, ServiceConfig, aws};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PgLogLevel, PgSqlErrorCode, PostgresGucEnum};

use crate::pg::guc::{check_hook, define_checked_string, reserve_prefix, with_str};

/// Where data keys are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum KmsMode {
    #[name = c"aws"]
    Aws,
    #[name = c"local"]
    Local,
}

type Str = GucSetting<Option<CString>>;
type Int = GucSetting<i32>;

static DATABASE: Str = Str::new(Some(c"postgres"));
static ALLOWED_IPS: Str = Str::new(Some(c""));
static KMS_MODE: GucSetting<KmsMode> = GucSetting::<KmsMode>::new(KmsMode::Aws);
static KMS_KEY_ID: Str = Str::new(Some(c""));
static KMS_REGION: Str = Str::new(Some(c""));
static KMS_ENDPOINT_URL: Str = Str::new(Some(c""));
static AWS_PROFILE: Str = Str::new(Some(c""));
static LOCAL_MASTER_KEY_FILE: Str = Str::new(Some(c""));
static KMS_MAX_RETRIES: Int = Int::new(5);
static KMS_TIMEOUT_MS: Int = Int::new(10_000);
static KMS_MAX_IN_FLIGHT: Int = Int::new(64);
static KMS_QUEUE_SLOTS: Int = Int::new(256);
static DEK_CACHE_SIZE: Int = Int::new(16_384);
static DEK_CACHE_TTL_SECS: Int = Int::new(300);
static DEK_CACHE_STALE_SECS: Int = Int::new(0);
static KEEP_VERSIONS: Int = Int::new(5);
static AUDIT_SYNC: GucSetting<bool> = GucSetting::<bool>::new(false);
static AUDIT_SPOOL_DIR: Str = Str::new(Some(c""));
static AUDIT_SPOOL_MAX_MB: Int = Int::new(1024);
static NODE_NAME: Str = Str::new(Some(c""));
static MAX_BATCH: Int = Int::new(256);
static MAX_SECRET_BYTES: Int = Int::new(1_048_576);
static HOOK_TIMEOUT_MS: Int = Int::new(5_000);
static ROTATION_ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static SCAN_INTERVAL_SECS: Int = Int::new(15);
#[cfg(feature = "testing")]
static TEST_FAULTS: Str = Str::new(Some(c""));
#[cfg(feature = "testing")]
static TEST_COUNTERS: Str = Str::new(Some(c""));

fn check_allowed_ips(value: &str) -> Result<(), InvalidArgument> {
    Allowlist::parse(value).map(drop)
}

/// Runs `check` unless the value is empty, which means: not set.
fn if_set(
    value: &str,
    check: impl FnOnce(&str) -> Result<(), InvalidArgument>,
) -> Result<(), InvalidArgument> {
    if value.is_empty() { Ok(()) } else { check(value) }
}

fn check_kms_key_id(value: &str) -> Result<(), InvalidArgument> {
    if_set(value, |value| aws::key::KeyRef::parse(value).map(drop))
}

fn check_kms_region(value: &str) -> Result<(), InvalidArgument> {
    let is_region = value.len() <= 63
        && value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_region {
        return Ok(());
    }
    Err(InvalidArgument::new("not an AWS region").hint("Give its code, such as eu-central-1."))
}

fn check_kms_endpoint_url(value: &str) -> Result<(), InvalidArgument> {
    if_set(value, aws::endpoint::check)
}

fn check_aws_profile(value: &str) -> Result<(), InvalidArgument> {
    if value.len() <= 255 && !value.contains(|c: char| c.is_control() || "[]".contains(c)) {
        return Ok(());
    }
    Err(InvalidArgument::new("not the name of a profile"))
}

fn check_key_file(value: &str) -> Result<(), InvalidArgument> {
    if value.is_empty() || value.starts_with('/') {
        return Ok(());
    }
    Err(InvalidArgument::new("the path is not absolute").hint("Give the key file's full path."))
}

fn check_spool_dir(value: &str) -> Result<(), InvalidArgument> {
    if value.is_empty() || value.starts_with('/') {
        return Ok(());
    }
    Err(InvalidArgument::new("the path is not absolute").hint("Give the directory's full path."))
}

fn check_node_name(value: &str) -> Result<(), InvalidArgument> {
    // As long as a host name may be.
    if value.len() <= 253 && !value.chars().any(char::is_control) {
        return Ok(());
    }
    Err(InvalidArgument::new("not the name of a node")
        .hint("Give at most 253 bytes without control characters."))
}

fn check_database(value: &str) -> Result<(), InvalidArgument> {
    // NAMEDATALEN - 1: a longer name cannot be a database's.
    if (1..=63).contains(&value.len()) {
        return Ok(());
    }
    Err(InvalidArgument::new("not a database name"))
}

#[cfg(feature = "testing")]
fn check_faults(value: &str) -> Result<(), InvalidArgument> {
    faults(value).map(drop)
}

#[cfg(feature = "testing")]
fn faults(value: &str) -> Result<Option<hyperion_vault_kms::testing::Faults>, InvalidArgument> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|e| InvalidArgument::new(format!("{e}")))
}

check_hook!(allowed_ips_hook, check_allowed_ips);
check_hook!(kms_key_id_hook, check_kms_key_id);
check_hook!(kms_region_hook, check_kms_region);
check_hook!(kms_endpoint_url_hook, check_kms_endpoint_url);
check_hook!(aws_profile_hook, check_aws_profile);
check_hook!(key_file_hook, check_key_file);
check_hook!(database_hook, check_database);
check_hook!(spool_dir_hook, check_spool_dir);
check_hook!(node_name_hook, check_node_name);
#[cfg(feature = "testing")]
check_hook!(faults_hook, check_faults);

/// Defines all settings. Once, in `_PG_init`.
pub fn define() {
    use GucContext::{Postmaster, Sighup};
    let plain = GucFlags::default();
    let private = GucFlags::SUPERUSER_ONLY;

    define_checked_string(
        c"hyperion_vault.database",
        c"The database the vault lives in.",
        &DATABASE,
        Postmaster,
        plain,
        database_hook,
    );
    define_checked_string(
        c"hyperion_vault.allowed_ips",
        c"Client addresses that may read and verify: addresses, CIDRs, local, internal. Empty denies all.",
        &ALLOWED_IPS,
        Sighup,
        private,
        allowed_ips_hook,
    );
    GucRegistry::define_enum_guc(
        c"hyperion_vault.kms_mode",
        c"The key service that wraps data keys.",
        c"",
        &KMS_MODE,
        Sighup,
        plain,
    );
    define_checked_string(
        c"hyperion_vault.kms_key_id",
        c"The AWS KMS key of kms_mode aws: its id, ARN or alias.",
        &KMS_KEY_ID,
        Sighup,
        private,
        kms_key_id_hook,
    );
    define_checked_string(
        c"hyperion_vault.kms_region",
        c"The AWS region of the key; empty takes it from kms_key_id or the AWS configuration.",
        &KMS_REGION,
        Sighup,
        plain,
        kms_region_hook,
    );
    define_checked_string(
        c"hyperion_vault.kms_endpoint_url",
        c"Another endpoint of AWS KMS, such as a VPC endpoint: https, or http on a loopback address.",
        &KMS_ENDPOINT_URL,
        Sighup,
        private,
        kms_endpoint_url_hook,
    );
    define_checked_string(
        c"hyperion_vault.aws_profile",
        c"The profile of the AWS configuration files that the key-service worker uses.",
        &AWS_PROFILE,
        Sighup,
        private,
        aws_profile_hook,
    );
    define_checked_string(
        c"hyperion_vault.local_master_key_file",
        c"File with the 32-byte master key of kms_mode local: mode 0600, owned by the server's user, outside the data directory.",
        &LOCAL_MASTER_KEY_FILE,
        Sighup,
        private,
        key_file_hook,
    );
    GucRegistry::define_bool_guc(
        c"hyperion_vault.audit_sync",
        c"Whether an operation waits until its audit record is on disk.",
        c"",
        &AUDIT_SYNC,
        Sighup,
        plain,
    );
    define_checked_string(
        c"hyperion_vault.audit_spool_dir",
        c"Directory of the audit spool; empty: hyperion_vault_audit in the data directory.",
        &AUDIT_SPOOL_DIR,
        Postmaster,
        private,
        spool_dir_hook,
    );
    define_checked_string(
        c"hyperion_vault.node_name",
        c"What audit records call this server; empty: its host name.",
        &NODE_NAME,
        Sighup,
        plain,
        node_name_hook,
    );
    #[cfg(feature = "testing")]
    define_checked_string(
        c"hyperion_vault.test_faults",
        c"Faults injected into the key service (test builds only).",
        &TEST_FAULTS,
        Sighup,
        private,
        faults_hook,
    );
    #[cfg(feature = "testing")]
    crate::pg::guc::define_counters(c"hyperion_vault.test_counters", &TEST_COUNTERS);

    let int = |name, description, setting: &'static Int, min, max, context, flags| {
        GucRegistry::define_int_guc(name, description, c"", setting, min, max, context, flags);
    };
    int(
        c"hyperion_vault.kms_max_retries",
        c"Further attempts after a retryable failure of the key service.",
        &KMS_MAX_RETRIES,
        0,
        20,
        Sighup,
        plain,
    );
    int(
        c"hyperion_vault.kms_timeout_ms",
        c"How long a session waits for the key service, queueing included.",
        &KMS_TIMEOUT_MS,
        10,
        600_000,
        Sighup,
        GucFlags::UNIT_MS,
    );
    int(
        c"hyperion_vault.kms_max_in_flight",
        c"Calls to the key service at one time.",
        &KMS_MAX_IN_FLIGHT,
        1,
        1024,
        Sighup,
        plain,
    );
    // The largest values keep the whole area (15 kB a slot, 192 B a cached key) below 4 GB.
    int(
        c"hyperion_vault.kms_queue_slots",
        c"Requests that can wait for the key service at one time.",
        &KMS_QUEUE_SLOTS,
        4,
        Inbox::SLOTS as i32,
        Postmaster,
        plain,
    );
    int(
        c"hyperion_vault.dek_cache_size",
        c"Unwrapped data keys kept in shared memory.",
        &DEK_CACHE_SIZE,
        8,
        16_777_216,
        Postmaster,
        plain,
    );
    int(c"hyperion_vault.dek_cache_ttl_secs", c"How long an unwrapped data key is used without asking the key service again; 0 turns the cache off.", &DEK_CACHE_TTL_SECS, 0, 86_400, Sighup, GucFlags::UNIT_S);
    int(
        c"hyperion_vault.dek_cache_stale_secs",
        c"How much longer while the key service is unreachable.",
        &DEK_CACHE_STALE_SECS,
        0,
        604_800,
        Sighup,
        GucFlags::UNIT_S,
    );
    int(
        c"hyperion_vault.keep_versions",
        c"Superseded versions retained for rolling back.",
        &KEEP_VERSIONS,
        0,
        1000,
        Sighup,
        plain,
    );
    int(
        c"hyperion_vault.audit_spool_max_mb",
        c"Most megabytes of audit records that wait to be taken into vault.audit_log; beyond it operations are refused.",
        &AUDIT_SPOOL_MAX_MB,
        1,
        1_048_576,
        Sighup,
        GucFlags::UNIT_MB,
    );
    int(
        c"hyperion_vault.max_batch",
        c"Most names that vault.read_secrets() takes at once.",
        &MAX_BATCH,
        1,
        100_000,
        Sighup,
        plain,
    );
    int(
        c"hyperion_vault.max_secret_bytes",
        c"Longest value of a secret.",
        &MAX_SECRET_BYTES,
        1,
        268_435_456,
        Sighup,
        GucFlags::UNIT_BYTE,
    );
    // A secret is locked, and a worker busy, for as long.
    int(
        c"hyperion_vault.hook_timeout_ms",
        c"How long the function that a secret's target names may take.",
        &HOOK_TIMEOUT_MS,
        1,
        600_000,
        Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"hyperion_vault.rotation_enabled",
        c"Whether automatic secrets are rotated when they are due.",
        c"",
        &ROTATION_ENABLED,
        Sighup,
        plain,
    );
    int(
        c"hyperion_vault.scan_interval_secs",
        c"Longest time between two looks for rotations that are due and versions and secrets that have run out.",
        &SCAN_INTERVAL_SECS,
        1,
        86_400,
        Sighup,
        GucFlags::UNIT_S,
    );
    reserve_prefix(c"hyperion_vault");
}

/// Variables that carry credentials themselves. Those that say where to get some (profile, role, token file, metadata
/// service) are not secret.
const CREDENTIALS: [&str; 2] = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Says that credentials in the postmaster's environment reach every backend by fork, where a superuser or a function in
/// an untrusted language reads them. Removing them here would take them from the worker too: it is forked as well.
pub fn warn_of_inherited_credentials() {
    let found: Vec<&str> = CREDENTIALS.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
    if found.is_empty() || KMS_MODE.get() != KmsMode::Aws {
        return;
    }
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "hyperion_vault: AWS credentials in the server's environment are inherited by every process",
        "",
    )
    .set_detail(format!("Found {}.", found.join(", ")))
    .set_hint("Use an instance or container role, a web identity token file, or hyperion_vault.aws_profile with a credentials file that only the server's user can read.")
    .report(PgLogLevel::WARNING);
}

/// Whether `name` is the database the vault lives in.
pub fn is_vault_database(name: &str) -> bool {
    with_str(&DATABASE, |database| database == name)
}

pub fn database() -> String {
    with_str(&DATABASE, str::to_owned)
}

thread_local! {
    /// The parsed allowlist beside the text it was parsed from.
    static PARSED: RefCell<(String, Allowlist)> = RefCell::default();
}

/// Runs `f` with the allowlist in force, parsed once per change. A text that does not parse (it was refused at
/// reload, so this cannot be) denies all.
pub fn with_allowlist<R>(f: impl FnOnce(&Allowlist) -> R) -> R {
    PARSED.with_borrow_mut(|(text, parsed)| {
        with_str(&ALLOWED_IPS, |now| {
            if now != text {
                *parsed = Allowlist::parse(now).unwrap_or_default();
                now.clone_into(text);
            }
        });
        f(parsed)
    })
}

fn non_negative(setting: &Int) -> usize {
    // Every range above starts at 0 or more.
    setting.get().max(0) as usize
}

pub fn kms_timeout() -> Duration {
    Duration::from_millis(non_negative(&KMS_TIMEOUT_MS) as u64)
}

pub fn queue_slots() -> usize {
    non_negative(&KMS_QUEUE_SLOTS)
}

pub fn dek_cache_size() -> usize {
    non_negative(&DEK_CACHE_SIZE)
}

pub fn dek_cache_ttl_ms() -> u64 {
    non_negative(&DEK_CACHE_TTL_SECS) as u64 * 1000
}

pub fn dek_cache_stale_ms() -> u64 {
    non_negative(&DEK_CACHE_STALE_SECS) as u64 * 1000
}

pub fn hook_timeout_ms() -> u64 {
    non_negative(&HOOK_TIMEOUT_MS) as u64
}

pub fn keep_versions() -> i32 {
    KEEP_VERSIONS.get()
}

pub fn audit_sync() -> bool {
    AUDIT_SYNC.get()
}

/// Runs `f` with the directory of the audit spool.
pub fn with_spool_dir<R>(f: impl FnOnce(&std::path::Path) -> R) -> R {
    thread_local! {
        /// Neither the setting nor the data directory changes while the server runs.
        static DIRECTORY: PathBuf = with_str(&AUDIT_SPOOL_DIR, |set| {
            if set.is_empty() {
                PathBuf::from(crate::pg::data_dir()).join("hyperion_vault_audit")
            } else {
                PathBuf::from(set)
            }
        });
    }
    DIRECTORY.with(|directory| f(directory))
}

/// Bytes.
pub fn spool_limit() -> u64 {
    non_negative(&AUDIT_SPOOL_MAX_MB) as u64 * (1 << 20)
}

/// Runs `f` with the name of this server.
pub fn with_node_name<R>(f: impl FnOnce(&str) -> R) -> R {
    thread_local! {
        static HOST: String = crate::pg::host_name();
    }
    with_str(&NODE_NAME, |set| if set.is_empty() { HOST.with(|host| f(host)) } else { f(set) })
}

pub fn max_batch() -> usize {
    non_negative(&MAX_BATCH)
}

pub fn max_secret_bytes() -> usize {
    non_negative(&MAX_SECRET_BYTES)
}

pub fn rotation_enabled() -> bool {
    ROTATION_ENABLED.get()
}

pub fn scan_interval() -> Duration {
    Duration::from_secs(non_negative(&SCAN_INTERVAL_SECS) as u64)
}

pub fn kms_mode() -> KmsMode {
    KMS_MODE.get()
}

/// The value of a setting whose empty string means: not set.
fn set(setting: &Str) -> Option<String> {
    with_str(setting, |value| (!value.is_empty()).then(|| value.to_owned()))
}

/// What the key-service worker runs with.
pub fn service() -> ServiceConfig {
    let timeout = kms_timeout();
    ServiceConfig {
        provider: match KMS_MODE.get() {
            KmsMode::Aws => ProviderConfig::Aws(AwsConfig {
                key_id: with_str(&KMS_KEY_ID, str::to_owned),
                region: set(&KMS_REGION),
                endpoint_url: set(&KMS_ENDPOINT_URL),
                profile: set(&AWS_PROFILE),
            }),
            KmsMode::Local => ProviderConfig::Local(LocalConfig {
                key_file: PathBuf::from(with_str(&LOCAL_MASTER_KEY_FILE, str::to_owned)),
                data_directory: PathBuf::from(crate::pg::data_dir()),
            }),
        },
        limits: Limits {
            max_in_flight: non_negative(&KMS_MAX_IN_FLIGHT),
            max_jobs: queue_slots(),
            max_retries: KMS_MAX_RETRIES.get().max(0) as u32,
            // A call that hangs leaves time for two more within the caller's deadline.
            attempt_timeout: timeout / 3,
        },
        #[cfg(feature = "testing")]
        faults: with_str(&TEST_FAULTS, |text| faults(text).ok().flatten()),
    }
}
