//! What the API server has said, as far as it must be remembered: names, problems, failures. The objects themselves are told on and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::{Addresses, Endpoints};
use crate::k8s::convert::Named;
use crate::k8s::news::{SourceFailure, SourceNews};
use crate::model::{Change, Kind, ObjectKey, Problem};

/// Keeps the books of all kinds, and tells what changes.
pub(super) struct Book {
    kinds: BTreeMap<Kind, Shelf>,
    /// Before all kinds are known, nothing is told: half a world would empty Services that work.
    held: Option<Vec<Change>>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Counts the states that were told.
    revision: u64,
    told_failure: Option<SourceFailure>,
    endpoints: Endpoints,
    addresses: Arc<Addresses>,
    tell: Box<dyn FnMut(SourceNews) + Send>,
}

/// One kind.
#[derive(Default)]
struct Shelf {
    /// It was listed once, or cannot be and need not.
    known: bool,
    names: BTreeSet<ObjectKey>,
    failure: Option<SourceFailure>,
}

impl Book {
    pub(super) fn new(
        kinds: impl Iterator<Item = Kind>,
        addresses: Arc<Addresses>,
        tell: impl FnMut(SourceNews) + Send + 'static,
    ) -> Self {
        Book {
            kinds: kinds.map(|kind| (kind, Shelf::default())).collect(),
            held: Some(Vec::new()),
            problems: BTreeMap::new(),
            revision: 0,
            told_failure: None,
            endpoints: Endpoints::default(),
            addresses,
            tell: Box::new(tell),
        }
    }

    /// These are all objects of a kind: what is not among them is gone.
    pub(super) fn listed(&mut self, kind: Kind, all: Vec<Named>) {
        let names: BTreeSet<ObjectKey> = all.iter().map(|named| named.key.clone()).collect();
        let shelf = self.kinds.entry(kind).or_default();
        let gone: Vec<ObjectKey> = shelf.names.difference(&names).cloned().collect();
        shelf.known = true;
        shelf.failure = None;
        let mut changes: Vec<Change> = all.into_iter().map(|named| self.take(named)).collect();
        changes.extend(gone.into_iter().map(|key| self.remove(key)));
        self.changed(changes);
    }

    /// These objects are new or different, or (without an object) gone.
    pub(super) fn saw(&mut self, news: Vec<Seen>) {
        if news.is_empty() {
            return;
        }
        let one = |seen| match seen {
            Seen::Is(named) => self.take(*named),
            Seen::Gone(key) => self.remove(key),
        };
        let changes = news.into_iter().map(one).collect();
        self.changed(changes);
    }

    /// A kind that need not be there cannot be had.
    pub(super) fn does_without(&mut self, kind: Kind) {
        let shelf = self.kinds.entry(kind).or_default();
        if !std::mem::replace(&mut shelf.known, true) {
            self.changed(Vec::new());
        }
    }

    /// A kind cannot be followed now.
    pub(super) fn failed(&mut self, kind: Kind, reason: String) {
        let shelf = self.kinds.entry(kind).or_default();
        shelf.failure = Some(SourceFailure::again(reason, shelf.failure.as_ref()));
        self.say_failure();
    }

    /// A kind can be followed.
    pub(super) fn follows(&mut self, kind: Kind) {
        if self.kinds.entry(kind).or_default().failure.take().is_some() {
            self.say_failure();
        }
    }

    fn take(&mut self, named: Named) -> Change {
        let Named { key, object, problems } = named;
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key.clone(), problems);
        }
        self.kinds.entry(key.kind).or_default().names.insert(key.clone());
        match object {
            Some(object) => Change::Apply(object),
            // As an object in a file that cannot be used: it counts as absent, and a problem says so.
            None => Change::Delete(key),
        }
    }

    fn remove(&mut self, key: ObjectKey) -> Change {
        self.problems.remove(&key);
        self.kinds.entry(key.kind).or_default().names.remove(&key);
        Change::Delete(key)
    }

    fn changed(&mut self, changes: Vec<Change>) {
        self.endpoints.see(&changes, &self.addresses);
        let changes = match self.held.take() {
            None => changes,
            Some(mut held) => {
                held.extend(changes);
                if !self.kinds.values().all(|shelf| shelf.known) {
                    self.held = Some(held);
                    return;
                }
                held.push(Change::Synced);
                held
            }
        };
        if !changes.is_empty() {
            self.revision += 1;
        }
        self.say(changes);
    }

    fn say_failure(&mut self) {
        if self.failure() != self.told_failure {
            self.say(Vec::new());
        }
    }

    /// The one that lasts longest.
    fn failure(&self) -> Option<SourceFailure> {
        let failures = self.kinds.values().filter_map(|shelf| shelf.failure.as_ref());
        failures.min_by_key(|failure| failure.since).cloned()
    }

    fn say(&mut self, changes: Vec<Change>) {
        let failure = self.failure();
        self.told_failure.clone_from(&failure);
        let problems = self.problems.values().flatten().cloned().collect();
        let revision = (self.revision > 0).then(|| self.revision.to_string());
        (self.tell)(SourceNews { changes, problems, revision, failure });
    }
}

/// What a watch says of an object.
pub(super) enum Seen {
    Is(Box<Named>),
    Gone(ObjectKey),
}
