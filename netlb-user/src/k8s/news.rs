//! What a source has to say.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::{Change, Problem};

/// A state of the source, as differences from the state before.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SourceNews {
    pub changes: Vec<Change>,
    /// What is wrong with the source, all of it.
    pub problems: Vec<Problem>,
    /// Name of the state.
    pub revision: Option<String>,
    /// Why the source, or part of it, cannot be followed now; what it said before holds.
    pub failure: Option<SourceFailure>,
}

/// Why a source cannot be read, and since when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceFailure {
    /// In words, with what to do.
    pub reason: String,
    /// Seconds since 1970.
    pub since: u64,
}

impl SourceFailure {
    /// A failure now, which goes on from the one before it, if there is one.
    pub fn again(reason: String, before: Option<&SourceFailure>) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        SourceFailure { reason, since: before.map_or_else(now, |before| before.since) }
    }
}
