//! Running the machine, and reading its console.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Job, Kernel};
use crate::test::{Outcome, Program};

/// No run lasts longer: enough for an emulated processor on a busy machine.
const LIMIT: Duration = Duration::from_secs(75 * 60);
/// Until the first process speaks.
const BOOT: Duration = Duration::from_secs(600);
/// What `init.sh` puts in front of its own lines.
const MARK: &str = "netlb-guest: ";

/// Boots the machine, shows what its tests print, and counts.
pub(super) fn run(
    kernel: Kernel,
    image: &Path,
    initramfs: &Path,
    jobs: &[(&Job, &Program)],
) -> Result<BTreeMap<String, Outcome>> {
    println!("\n== kernel {kernel}: booting under emulation");
    let machine = Machine::start(image, initramfs)?;
    let mut console = Console::default();
    let started = Instant::now();
    while !console.down {
        let limit = if console.up { LIMIT } else { BOOT };
        match machine.lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => console.read(line.trim_end()),
            Err(RecvTimeoutError::Timeout) => {
                console.fail(&format!("kernel {kernel} was stopped after {} s", started.elapsed().as_secs()));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => {
                console.fail(&format!("kernel {kernel} ended early: it panicked, or qemu did"));
                break;
            }
        }
    }
    machine.end()?;
    if !console.up {
        bail!("kernel {kernel} did not boot; the last it said:\n{}", console.tail.join("\n"));
    }
    for (job, _) in jobs {
        if !console.outcomes.contains_key(job.tier) {
            println!("error: tier {} did not run", job.tier);
            console.outcomes.entry(job.tier.to_owned()).or_default().failed += 1;
        }
    }
    Ok(console.outcomes)
}

/// qemu. Dropped, it is killed; killed, this program takes it along.
struct Machine {
    qemu: Child,
    lines: mpsc::Receiver<String>,
}

impl Machine {
    fn start(image: &Path, initramfs: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi"]);
        command.args(["-cpu", "max", "-smp", "2", "-m", "3072", "-no-reboot", "-nic", "none"]);
        command.args(["-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64; `cargo xtask setup` installs it")?;
        let console = qemu.stdout.take().context("qemu has no output")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || forward(console, &send));
        Ok(Machine { qemu, lines })
    }

    fn end(mut self) -> Result<()> {
        self.qemu.kill().context("cannot stop qemu")?;
        self.qemu.wait().context("cannot wait for qemu").map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing to do about either: the machine is gone already, or the system takes it.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Hands on line by line until the console closes or nobody listens.
fn forward(console: impl Read, lines: &mpsc::Sender<String>) {
    let mut console = BufReader::new(console);
    let mut line = Vec::new();
    while matches!(console.read_until(b'\n', &mut line), Ok(1..)) {
        if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
        line.clear();
    }
}

/// What the console said.
#[derive(Default)]
struct Console {
    up: bool,
    down: bool,
    tier: Option<String>,
    outcomes: BTreeMap<String, Outcome>,
    /// The last lines before the machine was up.
    tail: Vec<String>,
}

impl Console {
    fn read(&mut self, line: &str) {
        // Firmware and kernel may leave something without an end of line in front.
        let Some((_, mark)) = line.split_once(MARK) else {
            return self.text(line);
        };
        let mut words = mark.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("up"), release, _) => {
                println!("kernel {} is up", release.unwrap_or("?"));
                self.up = true;
            }
            (Some("begin"), Some(tier), _) => {
                println!("\n== {tier}");
                self.outcomes.entry(tier.to_owned()).or_default();
                self.tier = Some(tier.to_owned());
            }
            (Some("end"), Some(tier), status) => {
                let outcome = self.outcomes.entry(tier.to_owned()).or_default();
                if status != Some("0") && outcome.failed == 0 || !outcome.finished {
                    println!("error: {tier} ended with {} without saying why", status.unwrap_or("?"));
                    outcome.failed += 1;
                }
                self.tier = None;
            }
            (Some("down"), ..) => self.down = true,
            _ => self.text(line),
        }
    }

    fn text(&mut self, line: &str) {
        if !self.up {
            self.tail.push(line.to_owned());
            let old = self.tail.len().saturating_sub(20);
            self.tail.drain(..old);
            return;
        }
        println!("{line}");
        if let Some(tier) = &self.tier {
            self.outcomes.entry(tier.clone()).or_default().read(tier, line);
        }
    }

    /// Ends with an error in the tier that runs.
    fn fail(&mut self, what: &str) {
        println!("error: {what}");
        if let Some(tier) = &self.tier {
            self.outcomes.entry(tier.clone()).or_default().failed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Console {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.read(line));
        console
    }

    #[test]
    fn a_console_is_understood() {
        let console = read(&[
            "\u{1b}c\u{1b}[?7lSeaBIOS (version 1.16.2)",
            "Booting from ROM...",
            "\u{1b}c\u{1b}[?7l\u{1b}[2Jnetlb-guest: up 5.10.0-46-amd64",
            "netlb-guest: begin load",
            "test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "netlb-guest: end load 0",
            "netlb-guest: begin net",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            "netlb-guest: end net 1",
            "netlb-guest: down",
        ]);
        assert!(console.up && console.down);
        let sums: Vec<_> = console.outcomes.iter().map(|(tier, o)| (tier.as_str(), o.passed, o.failed)).collect();
        assert_eq!(sums, [("load", 9, 0), ("net", 1, 2)]);
    }

    #[test]
    fn what_does_not_come_to_its_end_has_failed() {
        let died =
            read(&["netlb-guest: up 6.1", "netlb-guest: begin net", "running 3 tests", "netlb-guest: end net 139"]);
        assert_eq!(died.outcomes["net"].failed, 1);
        let silent = read(&["netlb-guest: up 6.1", "netlb-guest: begin net", "netlb-guest: end net 0"]);
        assert_eq!(silent.outcomes["net"].failed, 1);
        let mut cut = read(&["netlb-guest: up 6.1", "netlb-guest: begin net", "Kernel panic"]);
        cut.fail("stopped");
        assert_eq!((cut.outcomes["net"].failed, cut.down), (1, false));
    }
}
