//! The machine the figures belong to, and this process's place on it: one CPU, ahead of others, until told to stop.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

static STOP: AtomicBool = AtomicBool::new(false);

/// What a reader must know to compare figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) load: String,
    pub(crate) mitigations: Vec<String>,
}

/// Makes Ctrl-C and SIGTERM end the run in order: namespaces, processes and groups are given back.
///
/// # Errors
/// When the handler cannot be set.
pub(crate) fn stop_on_signal() -> Result<()> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("cannot handle Ctrl-C")
}

/// # Errors
/// When the run was told to stop.
pub(crate) fn check_stop() -> Result<()> {
    if STOP.load(Ordering::Relaxed) {
        bail!("stopped by a signal; nothing is left behind");
    }
    Ok(())
}

/// # Errors
/// When `/proc` is not readable.
pub(crate) fn describe() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let cpu = read("/proc/cpuinfo")?
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()))
        .unwrap_or_else(|| "unknown".to_owned());
    let mut mitigations = Vec::new();
    if let Ok(folder) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") {
        for entry in folder {
            let path = entry?.path();
            let text = fs::read_to_string(&path).unwrap_or_default();
            if text.starts_with("Mitigation") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                mitigations.push(format!("{name}: {}", text.trim().trim_start_matches("Mitigation: ")));
            }
        }
    }
    mitigations.sort();
    Ok(Machine {
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpu,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        load: read("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "),
        mitigations,
    })
}

/// Binds the calling thread to the machine's last CPU, and puts it ahead of ordinary processes there, so that a neighbour's work does not count as
/// a packet's. Returns the CPU.
///
/// # Errors
/// When the kernel refuses the binding. Without real-time priority the run goes on: disturbed rounds are dropped anyway.
pub(crate) fn take_cpu() -> Result<usize> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .ok_or_else(|| anyhow!("no CPU is allowed to this process"))?;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot bind to CPU {cpu}"))?;
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters are a live, initialised struct; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        eprintln!(
            "note: no real-time priority ({}); other processes on CPU {cpu} disturb more rounds",
            std::io::Error::last_os_error()
        );
    }
    Ok(cpu)
}

/// Clock ticks that the hypervisor took from a CPU since boot.
///
/// # Errors
/// When `/proc/stat` does not have the CPU.
pub(crate) fn stolen_ticks(cpu: usize) -> Result<u64> {
    let table = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse_stolen(&table, cpu).ok_or_else(|| anyhow!("/proc/stat has no steal time for CPU {cpu}"))
}

fn parse_stolen(table: &str, cpu: usize) -> Option<u64> {
    let label = format!("cpu{cpu}");
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // cpuN user nice system idle iowait irq softirq steal
        if fields.next()? == label { fields.nth(7)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_number_of_the_cpu() {
        let table = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 80 9 10\ncpu1 1 2 3 4 5 6 7 81 9 10\n";
        assert_eq!(parse_stolen(table, 1), Some(81));
        assert_eq!(parse_stolen(table, 2), None);
    }
}
