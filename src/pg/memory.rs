//! Memory that is given back before the server would do so by itself.
//!
//! Main thread only. What a function allocates stays until its call ends: for one value that is right, for hundreds of
//! megabytes of them in one call it is not.

use pgrx::PgMemoryContexts;

/// Runs `f` in a memory context of its own, which is gone afterwards. What `f` returns must not point into it.
pub fn with_scratch<R>(f: impl FnOnce() -> R) -> R {
    let mut context = PgMemoryContexts::new("hyperion_vault row");
    let mut f = Some(f);
    // SAFETY: the context is ours and current only during the call.
    unsafe { context.switch_to(|_| f.take().map(|f| f())) }.unwrap_or_else(|| unreachable!("called once"))
}
