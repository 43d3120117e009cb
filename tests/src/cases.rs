//! The table of cases. Expectations come from the design, not from what the code does.

mod cast;
mod plain;
mod refuse;
mod service;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    [plain::cases(), service::cases(), refuse::cases()].into_iter().flatten().collect()
}
