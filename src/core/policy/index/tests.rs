//! The compiled policy against the slow and obvious one.

use super::*;
use crate::policy::{Caller, Reach, decide, reach};
use proptest::prelude::*;

fn rule(granted: Granted, path: &str) -> Rule {
    Rule { granted, path: Pattern::parse(path).unwrap() }
}

/// Each rule asked in turn.
fn reference(rules: &[Rule], action: Action, name: &str) -> bool {
    rules.iter().any(|rule| rule.granted.includes(action) && rule.path.matches(name))
}

fn granted() -> impl Strategy<Value = Granted> {
    prop_oneof![
        Just(Granted::Every),
        Just(Granted::One(Action::Read)),
        Just(Granted::One(Action::List)),
        Just(Granted::One(Action::Decrypt)),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let path = prop_oneof!["[ab/]{0,4}[*]?", "[ab*é/]{1,7}"].prop_filter("not empty", |p| !p.is_empty());
    prop::collection::vec((granted(), path).prop_map(|(granted, path)| rule(granted, &path)), 0..12)
}

/// Whether everything that `inner` matches is matched by `outer`, by trying: all strings up to a length over an
/// alphabet that has every letter of both and one that neither has.
fn covers_by_trying(outer: &Pattern, inner: &Pattern) -> bool {
    let mut strings = vec![String::new()];
    let mut length = 0;
    while length < 7 {
        let longer: Vec<String> = strings
            .iter()
            .filter(|s| s.chars().count() == length)
            .flat_map(|s| ['a', 'b', '#'].map(|c| format!("{s}{c}")))
            .collect();
        strings.extend(longer);
        length += 1;
    }
    strings.iter().all(|s| !inner.matches(s) || outer.matches(s))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_the_reference(rules in rules(), names in prop::collection::vec("[abé/#*]{0,8}", 1..12)) {
        let policy = Policy::new(false, rules.clone());
        let halves = [Policy::new(false, rules[..rules.len() / 2].to_vec()), Policy::new(false, rules[rules.len() / 2..].to_vec())];
        for name in &names {
            for action in [Action::Read, Action::List, Action::Decrypt, Action::Shred] {
                let expected = reference(&rules, action, name);
                prop_assert_eq!(policy.allows(action, name), expected, "{:?} {}", action, name);
                let held = [&halves[0], &halves[1]];
                prop_assert_eq!(decide(&Caller::default(), &held, action, name).is_allowed(), expected);
            }
        }
    }

    /// Nothing that is allowed lies outside of the ranges, and the ranges are what they promise to be.
    #[test]
    fn what_is_allowed_is_within_reach(rules in rules(), names in prop::collection::vec("[abé/#]{0,8}", 1..12)) {
        let policy = Policy::new(false, rules);
        let Reach::Ranges(ranges) = reach(&Caller::default(), &[&policy], Action::List) else { panic!("nobody reaches everything") };
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].1.as_ref().is_some_and(|end| *end < pair[1].0), "{:?}", ranges);
        }
        for name in &names {
            let within = ranges.iter().any(|(start, end)| name >= start && end.as_ref().is_none_or(|end| name < end));
            prop_assert!(within || !policy.allows(Action::List, name), "{} in {:?}", name, ranges);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Handing out asks whether a rule matches the *text* of a path: that must mean covering all that the path matches.
    /// Sound: never says so when it is not. Complete too, as long as there is a letter that the rule does not have.
    #[test]
    fn matching_the_text_of_a_path_is_covering_it(outer in "[ab*]{1,5}", inner in "[ab*]{1,5}") {
        let (outer, inner) = (Pattern::parse(&outer).unwrap(), Pattern::parse(&inner).unwrap());
        let policy = Policy::new(false, [Rule { granted: Granted::One(Action::Read), path: outer.clone() }]);
        // Strings of up to 7 letters are enough to tell patterns of up to 5 apart: each star of the inner one stands for
        // nothing or for one strange letter.
        prop_assert_eq!(policy.allows(Action::Read, inner.as_str()), covers_by_trying(&outer, &inner));
    }
}

#[test]
fn several_rules_for_one_prefix() {
    let policy = Policy::new(
        false,
        [
            rule(Granted::One(Action::Read), "a/b"),
            rule(Granted::One(Action::List), "a/b*"),
            rule(Granted::One(Action::Verify), "a/b*c"),
            rule(Granted::One(Action::Update), "a/b*c"),
            rule(Granted::One(Action::Rotate), "*"),
        ],
    );
    let allowed = |name: &str| -> Vec<&str> {
        Action::ALL
            .into_iter()
            .filter(|action| policy.allows(*action, name))
            .map(Action::as_str)
            .collect::<Vec<_>>()
    };
    assert_eq!(allowed("a/b"), ["read", "list", "rotate"]);
    assert_eq!(allowed("a/bc"), ["verify", "list", "update", "rotate"]);
    assert_eq!(allowed("a/bx"), ["list", "rotate"]);
    assert_eq!(allowed("a/"), ["rotate"]);
    assert!(Policy::default().is_empty() && !policy.is_empty() && !Policy::new(true, []).is_empty());
}

/// A hundred thousand rules, and prefixes that nest as deep as names are long: a decision stays a matter of microseconds.
#[test]
fn a_decision_does_not_look_at_every_rule() {
    let many = (0..1000).flat_map(|role| (0..100).map(move |i| format!("app{role}/service{i}/*")));
    let nested = (1..500).map(|depth| format!("{}*", "n".repeat(depth)));
    let policy = Policy::new(false, many.chain(nested).map(|path| rule(Granted::One(Action::Verify), &path)));
    let deepest = "n".repeat(512);
    let start = std::time::Instant::now();
    for i in 0..10_000 {
        let name = format!("app{}/service{}/password", i % 1000, i % 100);
        assert!(policy.allows(Action::Verify, &name) && !policy.allows(Action::Read, &name));
        assert!(!policy.allows(Action::Read, &deepest));
    }
    // About 0.2 s in a debug build; a walk over all rules would take minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "took {:?}", start.elapsed());
}
