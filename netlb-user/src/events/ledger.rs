//! Which Events to write, and when: each problem once while it lasts, again after a long time, and never many at once. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{Kind, Problem};

/// A problem that lasts is told again after this: the API server keeps Events for an hour.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// A problem that comes back sooner than this after it went is not news.
const FLAPS: Duration = Duration::from_secs(10 * 60);
/// Events at once at most, and how long it takes until one more may be written.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(10);
/// Longest note of an Event (events.k8s.io/v1), in bytes.
const NOTE: usize = 1024;

/// Why an Event is written, in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// Something about the object is not served as it asks.
    NotProgrammed,
    /// Its health check port cannot be opened: kube-proxy's word.
    FailedToStartServiceHealthcheck,
}

impl Reason {
    pub fn word(self) -> &'static str {
        match self {
            Reason::NotProgrammed => "NotProgrammed",
            Reason::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
        }
    }
}

/// Word about an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub kind: Kind,
    /// Empty for kinds outside namespaces.
    pub namespace: String,
    pub name: String,
    pub reason: Reason,
    /// What is wrong, and what to do; at most 1024 bytes.
    pub note: String,
}

/// Kind and name, field, message.
type Key = (String, String, String);

/// What was told.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// When it was written last; `None`: it waits for its turn.
    at: Option<Duration>,
    /// Last seen among the problems.
    seen: Duration,
}

/// What is known of former Events. Times are those of any clock that does not go backwards.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    told: BTreeMap<Key, Told>,
    /// Events written that still count against the burst.
    spent: u32,
    refilled: Duration,
}

impl Ledger {
    /// These are all problems there are now: what to write. What has no turn yet is told by a later call.
    pub fn due<'a>(&mut self, problems: impl IntoIterator<Item = (Reason, &'a Problem)>, now: Duration) -> Vec<Event> {
        self.refill(now);
        let mut due = Vec::new();
        let mut current = BTreeSet::new();
        for (reason, problem) in problems {
            let Some((kind, namespace, name)) = object(&problem.object) else { continue };
            let key = (problem.object.clone(), problem.field.clone(), problem.message.clone());
            let told = self.told.entry(key.clone()).or_insert(Told { at: None, seen: now });
            told.seen = now;
            current.insert(key);
            let news = told.at.is_none_or(|at| now.saturating_sub(at) >= AGAIN);
            if news && self.spent < BURST {
                self.spent += 1;
                told.at = Some(now);
                due.push(Event { kind, namespace, name, reason, note: note(problem) });
            }
        }
        // What went before it had its turn is no news; what was told is remembered for a while.
        self.told
            .retain(|key, told| current.contains(key) || told.at.is_some() && now.saturating_sub(told.seen) < FLAPS);
        due
    }

    fn refill(&mut self, now: Duration) {
        let turns = now.saturating_sub(self.refilled).as_secs() / REFILL.as_secs();
        self.spent = self.spent.saturating_sub(u32::try_from(turns).unwrap_or(u32::MAX));
        self.refilled += REFILL.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX));
    }
}

/// `Service shop/web` in its parts; `None`: a problem of what is no object of the API.
fn object(text: &str) -> Option<(Kind, String, String)> {
    let (word, rest) = text.split_once(' ')?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word)?;
    let (namespace, name) = if kind.is_namespaced() { rest.split_once('/')? } else { ("", rest) };
    Some((kind, namespace.to_owned(), name.to_owned()))
}

fn note(problem: &Problem) -> String {
    let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
    let mut note = format!("{field}{}; {}", problem.message, problem.remedy);
    if note.len() > NOTE {
        let end = (0..=NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
    }
    note
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn problem(object: &str, message: &str) -> Problem {
        Problem {
            file: None,
            object: object.to_owned(),
            field: "spec.ports[0].port".to_owned(),
            message: message.to_owned(),
            remedy: "choose another".to_owned(),
        }
    }

    fn tell(ledger: &mut Ledger, problems: &[Problem], now: u64) -> Vec<Event> {
        ledger.due(problems.iter().map(|problem| (Reason::NotProgrammed, problem)), s(now))
    }

    #[test]
    fn a_problem_is_told_once_and_again_while_it_lasts() {
        let mut ledger = Ledger::default();
        let web = problem("Service shop/web", "10.96.0.1:80/TCP belongs to another");
        let told = tell(&mut ledger, from_ref(&web), 0);
        let want = Event {
            kind: Kind::Service,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            reason: Reason::NotProgrammed,
            note: "spec.ports[0].port: 10.96.0.1:80/TCP belongs to another; choose another".to_owned(),
        };
        assert_eq!(told, [want]);
        for now in [1, 600, 1799] {
            assert_eq!(tell(&mut ledger, from_ref(&web), now), [], "at {now}");
        }
        assert_eq!(tell(&mut ledger, from_ref(&web), 1800).len(), 1, "the API server is about to forget it");
        assert_eq!(tell(&mut ledger, &[web.clone(), problem("Service shop/web", "else")], 1801).len(), 1);
    }

    #[test]
    fn one_that_comes_and_goes_is_no_news_for_a_while() {
        let mut ledger = Ledger::default();
        let node = problem("Node n1", "is odd");
        assert_eq!(tell(&mut ledger, from_ref(&node), 0).len(), 1);
        assert_eq!(tell(&mut ledger, &[], 10), []);
        assert_eq!(tell(&mut ledger, from_ref(&node), 20), []);
        assert_eq!(tell(&mut ledger, &[], 30), []);
        assert_eq!(tell(&mut ledger, &[], 700), []);
        assert!(ledger.told.is_empty(), "it is forgotten");
        assert_eq!(tell(&mut ledger, &[node], 701).len(), 1);
    }

    #[test]
    fn many_at_once_take_their_turns() {
        let mut ledger = Ledger::default();
        let all: Vec<Problem> = (0..40).map(|i| problem(&format!("Service shop/s{i:02}"), "is taken")).collect();
        assert_eq!(tell(&mut ledger, &all, 1000).len(), 25);
        assert_eq!(tell(&mut ledger, &all, 1005), []);
        let next = tell(&mut ledger, &all, 1010);
        assert_eq!(next.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["s25"]);
        assert_eq!(tell(&mut ledger, &all, 1100).len(), 9);
        assert_eq!(tell(&mut ledger, &all[..36], 1200).len(), 1, "those that went meanwhile are not told");
    }

    #[test]
    fn what_is_no_object_has_no_events_and_notes_have_an_end() {
        let mut ledger = Ledger::default();
        let long = problem("EndpointSlice shop/x", &"ä".repeat(1000));
        let told =
            tell(&mut ledger, &[problem("device veth1", "does not fit"), problem("Service nameless", ""), long], 0);
        assert_eq!(told.len(), 1);
        assert!(told[0].note.len() <= NOTE && told[0].note.ends_with('ä'));
    }
}
