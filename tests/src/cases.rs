//! The table of cases. Expectations come from the design, not from what the code does.

mod cast;
mod plain;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    [plain::cases()].into_iter().flatten().collect()
}
