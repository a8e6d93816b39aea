//! Scans of a made-up vault: what they show, in which order, and above all what they fetch.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::policy::{Action, Caller, Granted, Policy, Rule, spans};
use crate::secret::Pattern;

/// Names, and how many rows were fetched.
struct Vault<'a> {
    names: &'a BTreeSet<String>,
    policy: &'a Policy,
    fetched: usize,
}

impl Source for Vault<'_> {
    type Row = String;
    type Error = std::convert::Infallible;

    fn page(&mut self, start: &str, end: Option<&str>, rows: usize) -> Result<Vec<String>, Self::Error> {
        let within =
            self.names.range(start.to_owned()..).take_while(|name| end.is_none_or(|end| name.as_str() < end));
        let page: Vec<_> = within.take(rows).cloned().collect();
        self.fetched += page.len();
        Ok(page)
    }

    fn name(row: &String) -> &str {
        row
    }

    fn keep(&mut self, row: &String) -> Result<bool, Self::Error> {
        Ok(self.policy.allows(Action::Read, row))
    }
}

fn policy(paths: &[&str]) -> Policy {
    let rule =
        |path: &&str| Rule { granted: Granted::One(Action::Read), path: Pattern::parse(path).unwrap() };
    Policy::new(false, paths.iter().map(rule).collect::<Vec<_>>())
}

fn names(from: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    from.into_iter().collect()
}

/// The first `limit` rows that are shown, and the rows fetched for them.
fn scan(names: &BTreeSet<String>, policy: &Policy, limit: usize) -> (Vec<String>, usize) {
    let spans = spans(&Caller::default(), &[policy], Action::Read);
    let Walk::Pages(mut pages) = Walk::new(Bound::Rights) else { unreachable!() };
    let mut vault = Vault { names, policy, fetched: 0 };
    let mut shown = Vec::new();
    while shown.len() < limit {
        let Ok(Some(rows)) = pages.next(&spans, &mut vault) else { break };
        shown.extend(rows.into_iter().filter(|name| policy.allows(Action::Read, name)));
    }
    shown.truncate(limit);
    (shown, vault.fetched)
}

#[test]
fn names_are_looked_up_in_order_and_once() {
    let given = ["b", "a", "b", "", "aa"].map(str::to_owned).to_vec();
    let Walk::Names(left) = Walk::new(Bound::Names(given)) else { panic!("pages") };
    assert_eq!(left, ["", "a", "aa", "b"]);
}

#[test]
fn the_condition_with_the_fewest_names_bounds_a_scan() {
    let of = |names, arrays| Terms { names, arrays };
    assert_eq!(narrowest(&[]), None);
    assert_eq!(narrowest(&[of(0, 1), of(3, 0), of(1, 0), of(1, 0)]), Some(2));
    assert_eq!(narrowest(&[of(0, 1), of(1, 1)]), Some(0));
}

#[test]
fn a_span_that_one_rule_allows_is_left_as_early_as_the_query() {
    let vault = names((0..5000).map(|i| format!("a/{i:04}")).chain((0..5000).map(|i| format!("b/{i:04}"))));
    for paths in [&["b/*"][..], &["*"]] {
        let (shown, fetched) = scan(&vault, &policy(paths), 3);
        assert_eq!((shown.len(), fetched), (3, FIRST_PAGE));
        let (shown, fetched) = scan(&vault, &policy(paths), 2000);
        assert_eq!(shown.len(), 2000);
        assert!((2000..2000 + PAGE).contains(&fetched), "{fetched}");
    }
    // Two rules that touch are two spans.
    let (shown, fetched) = scan(&vault, &policy(&["a/00*", "b/*"]), 101);
    assert_eq!(shown.len(), 101);
    assert!(fetched <= 100 + PAGE, "{fetched}");
}

#[test]
fn any_other_span_is_fetched_whole() {
    let vault = names((0..2000).map(|i| format!("a/{i:04}/{}", if i % 2 == 0 { "x" } else { "y" })));
    for limit in [1, 10, 1000, 10_000] {
        let (shown, fetched) = scan(&vault, &policy(&["a/*/x"]), limit);
        assert_eq!((shown.len(), fetched), (limit.min(1000), 2000));
    }
}

/// Rights that end in the middle of a scan end it, and new ones count from where it is.
#[test]
fn the_rights_of_each_page_are_those_of_the_moment() {
    let vault = names((0..600).map(|i| format!("a/{i:04}")).chain((0..5).map(|i| format!("b/{i}"))));
    let Walk::Pages(mut pages) = Walk::new(Bound::Rights) else { unreachable!() };
    let mut next = |paths: &[&str]| {
        let policy = policy(paths);
        let spans = spans(&Caller::default(), &[&policy], Action::Read);
        let mut source = Vault { names: &vault, policy: &policy, fetched: 0 };
        pages.next(&spans, &mut source).unwrap()
    };
    assert_eq!(next(&["a/*"]).unwrap().first().unwrap(), "a/0000");
    assert_eq!(next(&["a/*/never", "b/*"]).unwrap(), Vec::<String>::new());
    assert_eq!(next(&["a/*", "b/*"]).unwrap().first().unwrap(), "b/0", "what was passed is passed");
    assert_eq!(next(&[]), None);
    assert_eq!(next(&["*"]), None, "the end is the end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn shows_what_may_be_read_in_order(
        vault in prop::collection::btree_set("[abc]{1,4}", 0..60),
        paths in prop::collection::vec("[ab*]{1,4}", 0..4),
        limit in 0usize..80,
    ) {
        let policy = policy(&paths.iter().map(String::as_str).collect::<Vec<_>>());
        let readable: Vec<_> =
            vault.iter().filter(|name| policy.allows(Action::Read, name)).take(limit).cloned().collect();
        prop_assert_eq!(scan(&vault, &policy, limit).0, readable);
    }

    /// Two vaults that differ only in names that the caller may not read, as many of them in each span: no query tells
    /// them apart by the rows it fetches.
    #[test]
    fn what_is_fetched_tells_nothing_of_other_names(
        readable in prop::collection::btree_set("a/[ab]{1,6}/x|p/[ab]{1,6}", 0..40),
        one in prop::collection::btree_set("[ab]{1,6}", 0..30),
        other in prop::collection::btree_set("[ab]{1,6}", 0..30),
        limit in 0usize..50,
    ) {
        let policy = policy(&["a/*/x", "p/*", "q"]);
        let count = one.len().min(other.len());
        // Some inside the span of the partial rule, some outside of all.
        let with = |hidden: &BTreeSet<String>| -> BTreeSet<String> {
            let hidden = hidden.iter().take(count);
            let hidden = hidden.flat_map(|name| [format!("a/{name}/y"), format!("b/{name}"), format!("pp/{name}")]);
            readable.iter().cloned().chain(hidden).collect()
        };
        prop_assert_eq!(scan(&with(&one), &policy, limit), scan(&with(&other), &policy, limit));
    }
}
