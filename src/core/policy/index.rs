//! [`Policy`]: the rules that apply to one caller, compiled so that a decision does not look at each of them.
//!
//! Built in a backend when the rules were loaded, asked on every operation: asking allocates nothing. The trap it avoids
//! is a decision whose cost grows with the policy of the whole vault, or with the number of rules a caller has: rules are
//! sorted by what their paths start with, so a decision finds those that can match by one binary search.
//!
//! **Coverage.** `*` stands in no name, and in a rule's path it is never literal text. So the text of a path *with* `*`
//! is matched by a rule exactly if the rule matches everything that path does: whatever stands for the star can only be
//! swallowed by a star of the rule. That makes "may he do this to that name" and "may he hand this path on" one
//! question; a test holds it against the definition.

use super::roles::{Action, manages};
use super::rules::{Granted, Rule};
use super::spans::Span;
use crate::secret::Pattern;

/// A set of actions, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Actions(u16);

impl Actions {
    fn of(granted: Granted) -> Self {
        match granted {
            Granted::One(action) => Self(1 << action as u16),
            Granted::Every => Self(u16::MAX),
        }
    }

    fn add(&mut self, granted: Granted) {
        self.0 |= Self::of(granted).0;
    }

    fn includes(self, action: Action) -> bool {
        self.0 & 1 << action as u16 != 0
    }
}

/// The rules whose paths start with the same literal text.
#[derive(Debug)]
struct Node {
    /// What stands before the first `*`; all of an exact path.
    prefix: Box<str>,
    /// The node with the longest prefix that this one's starts with.
    parent: Option<u32>,
    /// Granted by rules for this very name.
    exact: Actions,
    /// Granted by rules that are the prefix and one `*`.
    below: Actions,
    /// Rules with more behind the first `*`.
    others: Vec<(Pattern, Actions)>,
}

/// The rules of one or several roles. The default grants nothing.
#[derive(Debug, Default)]
pub struct Policy {
    is_admin: bool,
    /// By prefix, in byte order.
    nodes: Vec<Node>,
}

impl Policy {
    pub fn new(is_admin: bool, rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut rules: Vec<Rule> = rules.into_iter().collect();
        rules.sort_unstable_by(|a, b| a.path.literal_prefix().cmp(b.path.literal_prefix()));
        let mut nodes: Vec<Node> = Vec::new();
        // The nodes whose prefixes the last one's starts with, shortest first.
        let mut above: Vec<u32> = Vec::new();
        for Rule { granted, path } in rules {
            let prefix = path.literal_prefix();
            if nodes.last().is_none_or(|node| *node.prefix != *prefix) {
                above.retain(|place| prefix.starts_with(&*nodes[*place as usize].prefix));
                let parent = above.last().copied();
                above.push(nodes.len() as u32);
                nodes.push(Node {
                    prefix: prefix.into(),
                    parent,
                    exact: Actions::default(),
                    below: Actions::default(),
                    others: Vec::new(),
                });
            }
            let Some(node) = nodes.last_mut() else { continue };
            if path.is_exact() {
                node.exact.add(granted);
            } else if path.as_str().len() == prefix.len() + 1 {
                node.below.add(granted);
            } else if let Some((_, actions)) = node.others.iter_mut().find(|(other, _)| *other == path) {
                actions.add(granted);
            } else {
                node.others.push((path, Actions::of(granted)));
            }
        }
        Self { is_admin, nodes }
    }

    pub fn is_admin(&self) -> bool {
        self.is_admin
    }

    /// Whether the policy grants nothing at all.
    pub fn is_empty(&self) -> bool {
        !self.is_admin && self.nodes.is_empty()
    }

    /// Whether it allows `action` on `path`: on that name, or, if there is a `*` in it, on all names that it matches
    /// (by one rule; see the module).
    pub fn allows(&self, action: Action, path: &str) -> bool {
        if self.is_admin && manages(action) {
            return true;
        }
        // Every prefix that the path starts with is at or before the path in byte order, and all of them are prefixes
        // of the last one that is: whatever sorts between a prefix and a text that starts with it starts with it too.
        let after = self.nodes.partition_point(|node| *node.prefix <= *path);
        let mut place = after.checked_sub(1);
        while let Some(node) = place.and_then(|place| self.nodes.get(place)) {
            if path.starts_with(&*node.prefix) {
                let exact = node.exact.includes(action) && path.len() == node.prefix.len();
                let matches =
                    |(other, actions): &(Pattern, Actions)| actions.includes(action) && other.matches(path);
                if exact || node.below.includes(action) || node.others.iter().any(matches) {
                    return true;
                }
            }
            place = node.parent.map(|parent| parent as usize);
        }
        false
    }

    /// For each rule with `action`, the range of names that start as its path does.
    pub(super) fn ranges(&self, action: Action) -> impl Iterator<Item = (String, Option<String>)> {
        self.spans(action).map(|span| (span.start, span.end))
    }

    /// The same as spans, which say whether the rule allows all of the range.
    pub(super) fn spans(&self, action: Action) -> impl Iterator<Item = Span> {
        self.nodes.iter().filter_map(move |node| {
            let below = node.below.includes(action);
            let open = below || node.others.iter().any(|(_, actions)| actions.includes(action));
            let exact = node.exact.includes(action);
            let start = node.prefix.to_string();
            let end = if open { end_of(&node.prefix) } else { Some(just_after(&start)) };
            (open || exact).then_some(Span { start, end, whole: below || !open })
        })
    }
}

/// The place in byte order right after a name: U+0001 sorts before every character that a name may have.
fn just_after(name: &str) -> String {
    format!("{name}\u{1}")
}

/// Where the strings that start with `prefix` end; None: nowhere.
fn end_of(prefix: &str) -> Option<String> {
    Pattern::parse(&format!("{prefix}*")).ok().and_then(|pattern| pattern.prefix_end())
}

/// Ranges sorted and joined where they touch.
pub(super) fn merge(mut ranges: Vec<(String, Option<String>)>) -> Vec<(String, Option<String>)> {
    ranges.sort();
    let mut merged: Vec<(String, Option<String>)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            // No end: everything further on is in it.
            Some((_, None)) => break,
            Some((_, Some(last))) if start <= *last => {
                if end.as_ref().is_none_or(|end| end > last) {
                    merged.last_mut().unwrap_or_else(|| unreachable!("there is one")).1 = end;
                }
            }
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
