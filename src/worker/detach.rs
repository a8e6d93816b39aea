//! Makes room: no worker of ours is in the vault's database while a command wants it for itself.
//!
//! Every session, main thread, from the server's hook for utility commands. `DROP DATABASE`, `RENAME`, `SET TABLESPACE` and
//! a copy as `TEMPLATE` refuse while others are connected (the server itself sends away only autovacuum); `DROP
//! EXTENSION` would wait, and might deadlock. The session raises the number of those that hold the workers off, ends
//! them, waits until their posts are empty, and lowers the number when its transaction ends, however it does: also
//! when the session dies, since that aborts the transaction.
//!
//! The trap it avoids: a way for anybody to keep the workers off by commands he may not run. Only who may run the
//! command is made room for.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Release, SeqCst};
use std::time::Duration;

use super::posts::Posts;
use crate::area;
use crate::config;
use crate::pg::exit::{self, End};
use crate::pg::utility::{self, Command};
use crate::pg::{catalog, identity, latch, monotonic_ms, worker};

/// Longer than a worker takes to end: it is waiting, or in a statement that can be interrupted. Afterwards the server
/// says who is in the way.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// So long a worker may take to finish what it is at and leave by itself; then it is ended, in the middle of a statement.
const POLITE: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(5);

thread_local! {
    static HOLDING: Cell<bool> = const { Cell::new(false) };
    /// The subtransaction, the earliest if there are several, that did something the launcher should hear of at the end; 0:
    /// none did.
    static NEWS: Cell<u32> = const { Cell::new(0) };
}

pub fn install() {
    utility::before_each(before);
}

fn before(command: &Command) {
    let Ok(area) = area::get() else { return };
    let posts = &area.header.posts;
    let role = identity::current_user();
    let wanted = match command {
        Command::UseDatabaseAlone(name) | Command::RenameDatabase { from: name, .. }
            if config::is_vault_database(name) =>
        {
            catalog::may_manage_database(name, role)
        }
        Command::CopyDatabase { template, .. } if config::is_vault_database(template) => {
            catalog::may_copy_database(template, role)
        }
        // Nobody else owns it: it is not a trusted extension.
        Command::DropExtension(names) => {
            names.iter().any(|name| name == "hyperion_vault")
                && in_vault_database()
                && identity::is_superuser(role)
        }
        _ => false,
    };
    if wanted {
        hold_off(posts);
    }
    let news = match command {
        Command::CreateExtension(name) => {
            name == "hyperion_vault" && in_vault_database() && !catalog::extension_exists()
        }
        Command::RenameDatabase { to, .. } | Command::CopyDatabase { to, .. } => {
            config::is_vault_database(to)
        }
        _ => false,
    };
    if news {
        tell_afterwards();
    }
}

/// Has the launcher look once this transaction has ended.
fn tell_afterwards() {
    exit::at_transaction_end(ended);
    let now = exit::subtransaction();
    NEWS.set(match NEWS.get() {
        0 => now,
        before => before.min(now),
    });
}

fn in_vault_database() -> bool {
    config::is_vault_database(&identity::database_name())
}

fn hold_off(posts: &Posts) {
    if !HOLDING.get() {
        exit::at_transaction_end(ended);
        HOLDING.set(true);
        // Before the posts are looked at; see posts.rs.
        posts.held_off.fetch_add(1, SeqCst);
    }
    let begun = monotonic_ms();
    let mut told = [0; super::ROSTER.len()];
    loop {
        let mut empty = true;
        for (post, told) in posts.workers.iter().zip(&mut told) {
            if let Some(pid) = post.pid() {
                empty = false;
                let late = monotonic_ms().saturating_sub(begun) >= POLITE.as_millis() as u64;
                if !late {
                    post.wake();
                } else if std::mem::replace(told, pid) != pid {
                    // Once: the second one would add nothing.
                    worker::end(pid);
                }
            }
        }
        if empty || monotonic_ms().saturating_sub(begun) >= LONGEST_WAIT.as_millis() as u64 {
            return;
        }
        latch::wait(STEP);
    }
}

/// At the end of a transaction, however it ends.
fn ended(end: End) {
    // What has failed is no news: who may not run a command could make any number of it.
    if let End::SavepointAbort(first) = end {
        if NEWS.get() >= first {
            NEWS.set(0);
        }
        return;
    }
    let holding = HOLDING.replace(false);
    let news = NEWS.replace(0) != 0 && end == End::Commit;
    if !holding && !news {
        return;
    }
    let Ok(area) = area::get() else { return };
    if holding {
        area.header.posts.held_off.fetch_sub(1, Release);
    }
    area.header.posts.tell_launcher();
}
