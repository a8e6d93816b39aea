//! `list_secrets`, `list_versions`: what may be known without reading a value.
//!
//! Client backends, main thread, primary or standby.

use hyperion_vault_core::policy::{Action, Reach};
use hyperion_vault_core::secret::{Pattern, Timestamp, VersionState};
use pgrx::pg_sys::Datum;

use super::gate;
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::srf::RowSet;
use crate::store::listing::Page;
use crate::store::versions;

/// The most rows one call returns: each is about a kilobyte, and the result is held in memory.
const MAX_ROWS: i32 = 10_000;

/// `vault.list_secrets(pattern, after, max_rows, deleted)`.
pub fn list_secrets(args: &Args) -> Result<Return> {
    gate::environment()?;
    let pattern = Pattern::parse(args.text(0).ok_or_else(|| gate::null("pattern"))?)?;
    audit::subject(pattern.as_str());
    let rights = gate::rights()?;
    let reach = rights.reach(Action::List);
    if reach == Reach::Ranges(Vec::new()) {
        return Err(gate::denied(&[Action::List], pattern.as_str()));
    }
    let max_rows = args.int(2).ok_or_else(|| gate::null("max_rows"))?;
    if !(1..=MAX_ROWS).contains(&max_rows) {
        return Err(VaultError::new(Kind::Invalid, "max_rows is out of range")
            .detail(format!("It is {max_rows}; from 1 to {MAX_ROWS} is allowed."))
            .hint("Pass the last name of a page as \"after\" to get the next."));
    }
    let deleted = args.bool(3).ok_or_else(|| gate::null("deleted"))?;
    let rows = RowSet::begin(args)?;
    let spans = rights.spans(Action::List);
    let page = Page { pattern: &pattern, after: args.text(1), max_rows, deleted, spans: &spans };
    let listed = |name: &str| reach == Reach::Everywhere || rights.allow(Action::List, name);
    page.list(listed, |info| rows.push_composite(info))?;
    rows.finish()
}

/// `vault.list_versions(name)`.
pub fn list_versions(args: &Args) -> Result<Return> {
    gate::environment()?;
    let name = gate::name(args.text(0))?.as_str();
    gate::authorize(&[Action::List], name)?;
    let rows = RowSet::begin(args)?;
    let now = Timestamp(crate::pg::clock());
    let found = versions::list(name, |listed| {
        let expires_at = listed.expires_at.map(|at| Timestamp(at.value() as i64));
        let state = VersionState::at(now, listed.current, expires_at);
        rows.push(&[
            Some(Datum::from(listed.version)),
            Some(datum::varlena(state.as_str().as_bytes())),
            listed.created_at,
            listed.expires_at,
            listed.kms_key_id,
        ])
    })?;
    if found == 0 {
        return Err(gate::no_secret(name));
    }
    rows.finish()
}
