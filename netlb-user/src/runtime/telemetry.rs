//! Logs, and what each level means.
//!
//! | level | means |
//! | --- | --- |
//! | ERROR | netlb cannot do its work, or ends; somebody must act |
//! | WARN | netlb goes on, but something is worse than it should be: it could wake someone |
//! | INFO | a change an operator recognises: start and end, programs attached, Services in effect, the road that is open |
//! | DEBUG | how netlb came to it: each device, each batch of writes; the only level with pods' addresses |
//! | TRACE | each write to a map |
//!
//! A packet never causes a line, at no level: packets are counted.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error. `level` is a level or a filter as tracing-subscriber reads it (`info,netlb_user::devices=debug`).
///
/// # Errors
/// A line that names what is wrong with `level`.
pub fn init(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|e| {
        format!("log level {level:?}: {e}; use error, warn, info, debug or trace, or a filter like info,netlb_user::devices=debug")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .finish();
    // A second call (tests in one process) keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}
