//! What can go wrong between the agent and an API server.

use std::error::Error;
use std::fmt;

/// Why a question has no good answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Nothing came back, or it broke off.
    Away(String),
    /// The server remembers no history as old as that (410): list again.
    Gone,
    /// The server said no: HTTP status, and its words.
    Refused(u16, String),
    /// What came back makes no sense.
    Nonsense(String),
    /// A page of a list is larger than what is read at once.
    TooLarge,
    /// A watch was ended at once, without a word.
    Short,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Away(why) => write!(f, "no answer: {why}"),
            Trouble::Gone => f.write_str("it forgot what we knew (410)"),
            Trouble::Refused(code, words) => write!(f, "it says {code}: {words}"),
            Trouble::Nonsense(why) => write!(f, "its answer makes no sense: {why}"),
            Trouble::TooLarge => f.write_str("a page of its list is too large"),
            Trouble::Short => f.write_str("it ends watches as soon as they begin"),
        }
    }
}

/// An error and what caused it, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = error.source();
    }
    text
}
