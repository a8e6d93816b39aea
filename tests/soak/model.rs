//! What a session knows of the secrets that nobody but it changes. Runs in the threads of the storm.
//!
//! A commit whose answer was lost with the session leaves two possibilities; the next look at the secret decides.

use std::collections::BTreeMap;

/// A secret that is there: its version, and the values that are known, by version.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Secret {
    pub version: i32,
    /// None: made by the vault, and not read since.
    pub values: BTreeMap<i32, Option<String>>,
}

impl Secret {
    pub fn first(value: Option<String>) -> Self {
        let mut secret = Self::default();
        secret.next(value);
        secret
    }

    pub fn next(&mut self, value: Option<String>) {
        self.version += 1;
        self.values.insert(self.version, value);
    }

    pub fn value(&self) -> Option<&str> {
        self.values.get(&self.version)?.as_deref()
    }
}

/// Names with what may be there. More than one possibility only between a lost answer and the next look.
#[derive(Clone, Debug, Default)]
pub struct Model(BTreeMap<String, Vec<Option<Secret>>>);

impl Model {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| (name, vec![None])).collect())
    }

    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What is there. Only for names that are certain.
    pub fn of(&self, name: &str) -> Option<&Secret> {
        let [state] = &self.0[name][..] else { panic!("{name} is not certain") };
        state.as_ref()
    }

    pub fn of_mut(&mut self, name: &str) -> &mut Secret {
        let Some([Some(secret)]) = self.0.get_mut(name).map(|states| &mut states[..]) else {
            panic!("{name} is not there")
        };
        secret
    }

    pub fn set(&mut self, name: &str, state: Option<Secret>) {
        self.0.insert(name.to_owned(), vec![state]);
    }

    pub fn uncertain(&self) -> Vec<String> {
        self.0.iter().filter(|(_, states)| states.len() > 1).map(|(name, _)| name.clone()).collect()
    }

    /// The transaction that made `other` of this may have been committed.
    pub fn may_be(&mut self, other: Self) {
        for (name, states) in other.0 {
            let here = self.0.entry(name).or_default();
            for state in states {
                if !here.contains(&state) {
                    here.push(state);
                }
            }
        }
    }

    /// What was found of a name: its version and value, or that it is not there. Panics if that cannot be.
    pub fn found(&mut self, name: &str, found: Option<(i32, &str)>) {
        let states = self.0.get_mut(name).expect("a name of ours");
        let fits = |state: &Option<Secret>| match (state, found) {
            (None, None) => true,
            (Some(secret), Some((version, value))) => {
                secret.version == version && secret.value().is_none_or(|known| known == value)
            }
            _ => false,
        };
        let Some(mut state) = states.iter().find(|state| fits(state)).cloned() else {
            panic!("{name}: found {found:?}, where only these can be: {states:?}")
        };
        if let (Some(secret), Some((version, value))) = (&mut state, found) {
            secret.values.insert(version, Some(value.to_owned()));
        }
        *states = vec![state];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_leaves_two_possibilities_until_the_next_look() {
        let mut model = Model::new(["a".to_owned()]);
        let mut draft = model.clone();
        draft.set("a", Some(Secret::first(Some("v".into()))));
        model.may_be(draft);
        assert_eq!(model.uncertain(), ["a"]);
        let (mut there, mut gone) = (model.clone(), model);
        there.found("a", Some((1, "v")));
        assert_eq!(there.of("a").and_then(Secret::value), Some("v"));
        gone.found("a", None);
        assert_eq!(gone.of("a"), None);
    }

    #[test]
    #[should_panic(expected = "only these can be")]
    fn what_cannot_be_is_told() {
        let mut model = Model::new(["a".to_owned()]);
        model.set("a", Some(Secret::first(Some("v".into()))));
        model.found("a", Some((1, "w")));
    }
}
