//! The kernel's jiffies. Conntrack entries carry them, timeouts are counted in them, and no system call tells them: the program `clock` does.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::sys;

/// Values of CONFIG_HZ that kernels are built with.
const KNOWN_HZ: [u32; 12] = [24, 32, 48, 64, 100, 128, 250, 256, 300, 1000, 1024, 1200];

/// Between the two readings by which HZ is measured.
const INTERVAL: Duration = Duration::from_millis(60);

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
    /// Measures HZ; takes a tenth of a second.
    ///
    /// # Errors
    /// If the program cannot be run, or the measured frequency is none that kernels have.
    pub fn new(program: BorrowedFd<'_>) -> io::Result<Self> {
        let program = program.try_clone_to_owned()?;
        let (first, second) = {
            use std::os::fd::AsFd as _;
            let first = tick(program.as_fd())?;
            std::thread::sleep(INTERVAL);
            (first, tick(program.as_fd())?)
        };
        let hz = hz(first, second).ok_or_else(|| {
            io::Error::other(format!(
                "jiffies went from {} to {} in {} ns: no CONFIG_HZ known to netlb",
                first.jiffies,
                second.jiffies,
                second.nanoseconds.wrapping_sub(first.nanoseconds)
            ))
        })?;
        Ok(JiffiesClock { program, hz })
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
        use std::os::fd::AsFd as _;
        Ok(read(self.program.as_fd())?.jiffies as u32)
    }
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
    (off(nearest) < 0.15).then_some(nearest)
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
    fn the_nearest_known_frequency() {
        assert_eq!(measured(15, 60_000_000), Some(250));
        assert_eq!(measured(16, 64_300_000), Some(250));
        assert_eq!(measured(18, 60_100_000), Some(300));
        assert_eq!(measured(60, 60_400_000), Some(1000));
        assert_eq!(measured(6, 60_000_000), Some(100));
        assert_eq!(measured(0, 60_000_000), None);
        assert_eq!(measured(1, 0), None);
        assert_eq!(measured(600, 60_000_000), None);
    }
}
