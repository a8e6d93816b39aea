//! hyperion_vault: a secrets vault that lives entirely inside PostgreSQL.
//!
//! Start here, then docs/architecture.md. `core` (a crate of its own) decides, `kms` (another) asks key services,
//! `pg` is the only unsafe code, `store` knows the tables, `api` is what SQL calls; `kms_worker` and `kms_client` are
//! the two ends of the request queue in the shared memory that `area` lays out; `worker` has what lives in the vault's
//! database by itself.
//!
//! `_PG_init` runs in the postmaster (preloading). Loaded any other way the library refuses: without the worker and
//! its shared memory there is no vault.
#![deny(clippy::undocumented_unsafe_blocks)]

use pgrx::prelude::*;

mod api;
mod area;
mod audit;
mod config;
mod dek_cache;
mod error;
mod kms_client;
mod kms_worker;
mod pg;
mod store;
mod worker;

::pgrx::pg_module_magic!(name, version);

#[global_allocator]
static ALLOCATOR: pg::alloc::Allocator = pg::alloc::Allocator;

extension_sql_file!("../sql/10_roles.sql", name = "roles", bootstrap);
extension_sql_file!("../sql/20_schema.sql", name = "schema", requires = ["roles"]);
extension_sql_file!("../sql/25_access.sql", name = "access_tables", requires = ["schema"]);
extension_sql_file!("../sql/28_guards.sql", name = "guards", requires = ["access_tables"]);
extension_sql_file!("../sql/30_functions.sql", name = "functions", requires = ["guards"]);
extension_sql_file!("../sql/32_access.sql", name = "access_functions", requires = ["functions"]);
extension_sql_file!("../sql/35_view.sql", name = "view", requires = ["access_functions"]);
extension_sql_file!("../sql/40_grants.sql", name = "grants", requires = ["view"], finalize);

/// Called once when the server loads the library.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    if !pg::preloading() {
        area::not_preloaded().raise();
    }
    pg::keep_backtraces_from_clients();
    config::define();
    pg::shmem::on_startup(area::create);
    kms_worker::register();
    worker::launcher::register();
    pg::utility::install();
    worker::detach::install();
    pg::permissions::install();
    pg::members::install();
    config::warn_of_inherited_credentials();
}
