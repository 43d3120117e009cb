//! The kernel's jiffies. Conntrack entries carry them, timeouts are counted in them, and no system call tells them: the program `clock` does.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::sys::{self, Instruction};

/// Values of CONFIG_HZ on the architectures that run Kubernetes nodes.
const KNOWN_HZ: [u32; 4] = [100, 250, 300, 1000];

/// Between two readings by which HZ is measured.
const INTERVAL: Duration = Duration::from_millis(40);

/// A measurement this far off a known value says nothing: a busy machine's tick came late.
const TOLERANCE: f64 = 0.02;

/// Measurements tried until two in a row agree.
const ATTEMPTS: usize = 25;

/// The jiffies clock of the running kernel.
pub struct JiffiesClock {
    program: OwnedFd,
    hz: u32,
}

/// One reading of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reading {
    jiffies: u64,
    nanoseconds: u64,
}

impl JiffiesClock {
    /// With the known HZ of the running kernel, or else (`None`) measures it, which takes a tenth of a second.
    ///
    /// # Errors
    /// If the program cannot be run, or the measured frequency is none that kernels have.
    pub fn new(program: BorrowedFd<'_>, known: Option<u32>) -> io::Result<Self> {
        let hz = match known {
            Some(hz) => hz,
            None => measure(program)?,
        };
        Ok(JiffiesClock { program: program.try_clone_to_owned()?, hz })
    }

    /// Jiffies a second.
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// The low 32 bits of jiffies, as entries carry them.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn now(&self) -> io::Result<u32> {
        Ok(read(self.program.as_fd())?.jiffies as u32)
    }
}

/// The low 32 bits of jiffies, for whoever has no program loaded: by one of two instructions, that returns what `bpf_jiffies64` says.
///
/// # Errors
/// The kernel's.
pub fn jiffies() -> io::Result<u32> {
    const SCHED_CLS: u32 = 3;
    const JIFFIES64: i32 = 118;
    let program = sys::program_load(SCHED_CLS, 0, &[Instruction::call(JIFFIES64), Instruction::EXIT])?;
    sys::test_run(program.as_fd(), &mut [0; 64])
}

fn measure(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut before = tick(program)?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        std::thread::sleep(INTERVAL);
        let now = tick(program)?;
        let measured = hz(before, now);
        if let Some(hz) = measured.filter(|_| measured == last) {
            return Ok(hz);
        }
        (before, last) = (now, measured);
    }
    Err(io::Error::other(format!("the kernel's jiffies tick at none of {KNOWN_HZ:?} a second")))
}

/// A reading just after the clock ticked, so that two of them measure whole ticks.
fn tick(program: BorrowedFd<'_>) -> io::Result<Reading> {
    let deadline = Instant::now() + Duration::from_secs(1);
    let first = read(program)?;
    loop {
        let next = read(program)?;
        if next.jiffies != first.jiffies {
            return Ok(next);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("jiffies stand still"));
        }
    }
}

fn read(program: BorrowedFd<'_>) -> io::Result<Reading> {
    let mut packet = [0u8; 64];
    sys::test_run(program, &mut packet)?;
    let word = |at: usize| bytemuck::pod_read_unaligned::<u64>(&packet[at..at + 8]);
    Ok(Reading { jiffies: word(0), nanoseconds: word(8) })
}

/// The known frequency nearest to the measured one, if it is near at all.
fn hz(first: Reading, second: Reading) -> Option<u32> {
    let ticks = second.jiffies.checked_sub(first.jiffies)? as f64;
    let seconds = second.nanoseconds.checked_sub(first.nanoseconds)? as f64 / 1e9;
    let measured = ticks / seconds;
    let off = |hz: u32| (measured / f64::from(hz) - 1.0).abs();
    let nearest = KNOWN_HZ.into_iter().min_by(|a, b| off(*a).total_cmp(&off(*b)))?;
    (off(nearest) < TOLERANCE).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ticks: u64, nanoseconds: u64) -> Option<u32> {
        let first = Reading { jiffies: 1 << 33, nanoseconds: 5_000_000_000 };
        let second = Reading { jiffies: first.jiffies + ticks, nanoseconds: first.nanoseconds + nanoseconds };
        hz(first, second)
    }

    #[test]
    fn a_known_frequency_or_none() {
        assert_eq!(measured(10, 40_000_000), Some(250));
        assert_eq!(measured(11, 44_100_000), Some(250));
        assert_eq!(measured(12, 40_000_000), Some(300));
        assert_eq!(measured(40, 40_300_000), Some(1000));
        assert_eq!(measured(4, 40_000_000), Some(100));
        // A tick that came late.
        assert_eq!(measured(10, 43_000_000), None);
        assert_eq!(measured(0, 40_000_000), None);
        assert_eq!(measured(1, 0), None);
        assert_eq!(measured(600, 60_000_000), None);
    }
}
