//! A provider that misbehaves on demand, around one that does not. Feature `testing` only: not in a release.
//!
//! Runs where providers run. Integration tests of the worker set it through one string:
//!
//! ```text
//! delay_ms=500              every call takes that much longer
//! fail=unreachable,times=3  the next 3 calls fail so (without times: all)
//! panic=1                   the next call panics
//! hang                      calls never end (hang=2: the next 2)
//! panic_now=1               the next call panics on the thread that asked, if the provider is asked there
//! die=panic|error|fatal     the worker's main thread ends so, once, when it reads this at a reload
//! ```
//!
//! Any other fault makes the provider one that is asked on tokio threads: delays and hangs are for those.
//!
//! The trap it avoids: a test that proves the fake. The real provider still does the work of every call that is
//! not spoiled.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyperion_vault_core::envelope::{Dek, DekContext};

use crate::error::{ErrorKind, KmsError};
use crate::provider::{
    BoxFuture, GeneratedDek, ImmediateProvider, KeyDescription, KeyProvider, StoredDek, WrappedBy, WrappedDek,
};

/// "All calls": more than any test makes.
const ALL: u32 = u32::MAX;

/// What to spoil.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Added to every call.
    pub delay: Duration,
    /// How calls fail, and how many.
    pub fail: Option<(ErrorKind, u32)>,
    /// How many calls panic.
    pub panics: u32,
    /// How many calls hang.
    pub hangs: u32,
    /// How many calls panic on the main thread.
    pub panics_now: u32,
    /// How the worker itself ends. Done by the worker: the provider has no part in it.
    pub die: Option<Death>,
}

/// The ways in which a worker's own code can end it without a crash of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// A Rust panic.
    Panic,
    /// A Postgres ERROR: unwinds.
    Error,
    /// A Postgres FATAL: ends the process through its exit callbacks, without unwinding.
    Fatal,
}

impl Death {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "panic" => Self::Panic,
            "error" => Self::Error,
            "fatal" => Self::Fatal,
            _ => return None,
        })
    }
}

impl FromStr for Faults {
    type Err = KmsError;

    /// Comma-separated, as in the module's documentation; blanks around items are ignored. Unknown items are
    /// errors: a misspelt fault would make a test pass for nothing.
    fn from_str(text: &str) -> Result<Self, KmsError> {
        let mut faults = Self::default();
        let (mut fail, mut times) = (None, None);
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').map_or((item, None), |(n, v)| (n, Some(v)));
            let number = || value.and_then(|value| value.parse::<u32>().ok()).ok_or_else(|| bad(item));
            match name {
                "delay_ms" => faults.delay = Duration::from_millis(number()?.into()),
                "fail" => fail = Some(value.and_then(ErrorKind::from_name).ok_or_else(|| bad(item))?),
                "times" => times = Some(number()?),
                "panic" => faults.panics = number()?,
                "hang" => faults.hangs = if value.is_none() { ALL } else { number()? },
                "panic_now" => faults.panics_now = number()?,
                "die" => faults.die = Some(value.and_then(Death::from_name).ok_or_else(|| bad(item))?),
                _ => return Err(bad(item)),
            }
        }
        if times.is_some() && fail.is_none() {
            return Err(bad("times without fail"));
        }
        faults.fail = fail.map(|kind| (kind, times.unwrap_or(ALL)));
        Ok(faults)
    }
}

fn bad(item: &str) -> KmsError {
    KmsError::misconfigured("invalid fault list").with_detail(format!("Cannot use \"{item}\"."))
}

/// A key service that is away from `begin` to `end`. Clones are one outage.
#[derive(Clone, Debug, Default)]
pub struct Outage(Arc<AtomicBool>);

impl Outage {
    /// From now on every call fails as unreachable.
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Calls work again.
    pub fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), KmsError> {
        let away = self.0.load(Ordering::SeqCst);
        if away { Err(KmsError::new(ErrorKind::Unreachable, "injected outage")) } else { Ok(()) }
    }
}

/// Decorates a provider with [`Faults`]. Counts start anew with each one, so with each reload.
pub struct FaultyProvider<P: ?Sized> {
    faults: Faults,
    failures_left: AtomicU32,
    panics_left: AtomicU32,
    hangs_left: AtomicU32,
    panics_now_left: AtomicU32,
    outage: Outage,
    inner: Arc<P>,
}

impl<P: KeyProvider + ?Sized> FaultyProvider<P> {
    /// Spoils calls to `inner`.
    pub fn new(inner: Arc<P>, faults: Faults) -> Self {
        Self {
            faults,
            failures_left: AtomicU32::new(faults.fail.map_or(0, |(_, times)| times)),
            panics_left: AtomicU32::new(faults.panics),
            hangs_left: AtomicU32::new(faults.hangs),
            panics_now_left: AtomicU32::new(faults.panics_now),
            outage: Outage::default(),
            inner,
        }
    }

    /// Also fails while that outage lasts.
    pub fn with_outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// The provider inside, for a call on the thread that asked.
    fn spoil_now(&self) -> Result<&dyn ImmediateProvider, KmsError> {
        self.outage.check()?;
        if take(&self.panics_now_left) {
            panic!("panic asked for by a test");
        }
        self.inner
            .immediate()
            .ok_or_else(|| KmsError::new(ErrorKind::Internal, "the provider inside is not immediate"))
    }

    async fn spoil(&self) -> Result<(), KmsError> {
        self.outage.check()?;
        if !self.faults.delay.is_zero() {
            tokio::time::sleep(self.faults.delay).await;
        }
        if take(&self.panics_left) {
            panic!("panic asked for by a test");
        }
        if let Some((kind, _)) = self.faults.fail
            && take(&self.failures_left)
        {
            return Err(KmsError::new(kind, format!("injected failure: {}", kind.as_str())));
        }
        if take(&self.hangs_left) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// Counts down to zero; at `ALL`, never. Relaxed: one counter, nothing is published through it.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(
        Ordering::Relaxed,
        Ordering::Relaxed,
        |n| if n == ALL { Some(n) } else { n.checked_sub(1) },
    )
    .is_ok()
}

impl<P: KeyProvider + ?Sized> KeyProvider for FaultyProvider<P> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn generate_dek<'a>(&'a self, context: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>> {
        Box::pin(async move {
            self.spoil().await?;
            self.inner.generate_dek(context).await
        })
    }

    fn unwrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>> {
        Box::pin(async move {
            self.spoil().await?;
            self.inner.unwrap_dek(context, stored).await
        })
    }

    fn wrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async move {
            self.spoil().await?;
            self.inner.wrap_dek(context, dek).await
        })
    }

    fn rewrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async move {
            self.spoil().await?;
            self.inner.rewrap_dek(context, stored).await
        })
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>> {
        Box::pin(async move {
            self.spoil().await?;
            self.inner.describe().await
        })
    }

    fn immediate(&self) -> Option<&dyn ImmediateProvider> {
        let on_this_thread = Faults { panics_now: self.faults.panics_now, ..Faults::default() };
        (self.faults == on_this_thread && self.inner.immediate().is_some()).then_some(self)
    }
}

impl<P: KeyProvider + ?Sized> ImmediateProvider for FaultyProvider<P> {
    fn generate_now(&self, context: &DekContext) -> Result<GeneratedDek, KmsError> {
        self.spoil_now()?.generate_now(context)
    }

    fn unwrap_now(&self, context: &DekContext, stored: &StoredDek) -> Result<Box<Dek>, KmsError> {
        self.spoil_now()?.unwrap_now(context, stored)
    }

    fn describe_now(&self) -> Result<KeyDescription, KmsError> {
        self.spoil_now()?.describe_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_documents() {
        let faults: Faults =
            "delay_ms=500, fail=unreachable,times=3,panic=1,hang,panic_now=2,die=fatal".parse().unwrap();
        assert_eq!(
            faults,
            Faults {
                delay: Duration::from_millis(500),
                fail: Some((ErrorKind::Unreachable, 3)),
                panics: 1,
                hangs: ALL,
                panics_now: 2,
                die: Some(Death::Fatal),
            }
        );
        assert_eq!("".parse(), Ok(Faults::default()));
        assert_eq!("fail=refused".parse::<Faults>().unwrap().fail, Some((ErrorKind::Refused, ALL)));
        assert_eq!("hang=2".parse::<Faults>().unwrap().hangs, 2);
    }

    #[test]
    fn refuses_the_rest() {
        for bad in
            ["delay", "delay_ms=", "delay_ms=x", "delay_ms=-1", "fail", "fail=no", "times=3", "panics=1"]
        {
            assert!(bad.parse::<Faults>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_down_once_each() {
        let left = AtomicU32::new(2);
        assert_eq!([take(&left), take(&left), take(&left), take(&left)], [true, true, false, false]);
        let all = AtomicU32::new(ALL);
        assert!((0..1000).all(|_| take(&all)));
    }
}
