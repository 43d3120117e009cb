//! SIGTERM and SIGINT as an ordinary event.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// Blocks the signals in this thread and all it will start, and calls `then` once with the first that comes. Call it before other threads are
/// made.
///
/// # Errors
/// If the thread cannot be made.
pub fn on_end(then: impl FnOnce(&'static str) + Send + 'static) -> io::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        set.add(signal);
    }
    set.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Ok(signal) = set.wait() {
            then(signal.as_str());
        }
    })?;
    Ok(())
}
