//! [`Span`]: where in the order of names a caller's rules may allow something, one span per rule rather than per range.
//!
//! Runs in the backend of the caller when a scan of readable secrets takes its next page. The trap it avoids: a scan that
//! stops early tells how many rows it passed, because the server's statistics count them for everybody. That is harmless
//! where every row passed is one that the caller may read, so each span says whether one rule allows all of its names.

use super::index::Policy;
use super::roles::{Action, Caller, manages, permits};

/// Names from `start` to before `end`, in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: String,
    /// None: no end.
    pub end: Option<String>,
    /// Whether one rule allows every name of the span.
    pub whole: bool,
}

impl Span {
    /// Every name there is.
    fn everything(whole: bool) -> Self {
        Self { start: String::new(), end: None, whole }
    }

    fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && !ends_before(self.end.as_deref(), other.end.as_deref())
    }
}

/// Whether the end `a` comes before the end `b`; None is the last of all.
fn ends_before(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(a), Some(b)) => a < b,
    }
}

/// Where `action` may be allowed: sorted spans that do not overlap. Names outside of them are not allowed; names inside are,
/// as far as [`decide`](super::decide) says so.
pub fn spans(caller: &Caller, held: &[&Policy], action: Action) -> Vec<Span> {
    if permits(caller, action) || held.iter().any(|policy| policy.is_admin() && manages(action)) {
        return vec![Span::everything(true)];
    }
    outermost(held.iter().flat_map(|policy| policy.spans(action)).collect())
}

/// Without the spans that lie inside another one. Those of rules are of one prefix each, so two either are apart or one
/// contains the other. Of two that are the same, the one that is allowed wholly stays.
fn outermost(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by(|a, b| {
        let longest_first = ends_before(a.end.as_deref(), b.end.as_deref())
            .cmp(&ends_before(b.end.as_deref(), a.end.as_deref()));
        a.start.cmp(&b.start).then(longest_first).then(b.whole.cmp(&a.whole))
    });
    let mut kept: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        if !kept.last().is_some_and(|last| last.contains(&span)) {
            kept.push(span);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Reach, Rule, decide, reach};
    use crate::secret::Pattern;
    use proptest::prelude::*;

    fn policy(paths: &[&str]) -> Policy {
        let rules = paths.iter().map(|path| Rule {
            granted: crate::policy::Granted::One(Action::Read),
            path: Pattern::parse(path).unwrap(),
        });
        Policy::new(false, rules)
    }

    fn of(paths: &[&str]) -> Vec<String> {
        spans(&Caller::default(), &[&policy(paths)], Action::Read)
            .iter()
            .map(|span| {
                let end = span.end.as_deref().unwrap_or("-").escape_debug().to_string();
                format!("{}..{end} {}", span.start, if span.whole { "whole" } else { "part" })
            })
            .collect()
    }

    #[test]
    fn one_span_for_each_rule_that_no_other_contains() {
        assert_eq!(of(&[]), Vec::<String>::new());
        assert_eq!(of(&["*"]), ["..- whole"]);
        assert_eq!(of(&["a/*", "b/*"]), ["a/..a0 whole", "b/..b0 whole"]);
        assert_eq!(of(&["a*", "b*"]), ["a..b whole", "b..c whole"], "spans that touch stay two");
        assert_eq!(of(&["a/*/x"]), ["a/..a0 part"]);
        assert_eq!(of(&["a/*", "a/*/x", "a/b", "a/b/*"]), ["a/..a0 whole"]);
        assert_eq!(of(&["a/*/x", "a/b", "a/b/*"]), ["a/..a0 part"]);
        assert_eq!(of(&["*/x", "a/*"]), ["..- part"]);
        assert_eq!(of(&["a"]), ["a..a\\u{1} whole"]);
        assert_eq!(of(&["a", "a*c"]), ["a..b part"]);
        assert_eq!(of(&["a*c", "a*"]), ["a..b whole"]);
    }

    #[test]
    fn of_several_policies_the_outermost() {
        let held = [&policy(&["a/*/x"]), &policy(&["a/*"])];
        let found = spans(&Caller::default(), &held, Action::Read);
        assert_eq!(found, [Span { start: "a/".into(), end: Some("a0".into()), whole: true }]);
        assert_eq!(spans(&Caller::default(), &held, Action::Verify), []);
    }

    #[test]
    fn roles_that_read_everything() {
        let reader = Caller { vault_reader: true, ..Caller::default() };
        let admin = Caller { vault_admin: true, ..Caller::default() };
        assert_eq!(spans(&reader, &[], Action::Read), [Span::everything(true)]);
        assert_eq!(spans(&admin, &[&Policy::new(true, [])], Action::Read), []);
        assert_eq!(spans(&admin, &[], Action::List), [Span::everything(true)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn spans_hold_what_they_promise(
            paths in prop::collection::vec("[ab*]{1,5}", 0..6),
            others in prop::collection::vec("[ab*]{1,5}", 0..3),
            names in prop::collection::vec("[abc]{0,6}", 1..20),
        ) {
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            let others: Vec<_> = others.iter().map(String::as_str).collect();
            let held = [&policy(&paths), &policy(&others)];
            let found = spans(&Caller::default(), &held, Action::Read);
            for pair in found.windows(2) {
                prop_assert!(pair[0].end.as_ref().is_some_and(|end| *end <= pair[1].start), "{:?}", found);
            }
            let Reach::Ranges(ranges) = reach(&Caller::default(), &held, Action::Read) else { panic!("everything") };
            for name in &names {
                let within = |start: &String, end: Option<&String>| name >= start && end.is_none_or(|end| name < end);
                let span = found.iter().find(|span| within(&span.start, span.end.as_ref()));
                let allowed = decide(&Caller::default(), &held, Action::Read, name).is_allowed();
                prop_assert!(span.is_some() || !allowed, "{} is allowed, outside of {:?}", name, found);
                prop_assert!(allowed || !span.is_some_and(|span| span.whole), "{} in {:?}", name, found);
                let reached = ranges.iter().any(|(start, end)| within(start, end.as_ref()));
                prop_assert_eq!(span.is_some(), reached, "{}: {:?} {:?}", name, &found, &ranges);
            }
        }
    }
}
