//! Problems: what netlb could not do as asked, in words for the person who can change it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong with one object. Ordered by file, object and field, so that lists are stable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// File the object was read from; `None` if it did not come from one.
    pub file: Option<String>,
    /// Kind and name: `Service shop/frontend`.
    pub object: String,
    /// Path of the field: `spec.ports[1].port`; empty if it is not about one.
    pub field: String,
    /// What is wrong, and what netlb does about it.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        write!(f, "{}", self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}; {}", self.message, self.remedy)
    }
}
