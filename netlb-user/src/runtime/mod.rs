//! What a long-running process needs beside its work: logs with a meaning, signals, a lock, source ports, and a look at the machine before the start.

pub mod atomic_file;
pub mod lock;
pub mod mounts;
pub mod ports;
pub mod preflight;
pub mod random;
pub mod signals;
pub mod telemetry;
