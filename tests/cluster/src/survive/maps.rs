//! What agents have put into the kernel, and what they would.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use netlb_testnode::agent::PIN_PATH;
use netlb_testnode::process::Stop;
use serde_json::Value;

use super::LOOK;
use crate::agents::{self, RUN_DIR};
use crate::cluster::Cluster;
use crate::control_plane;
use crate::daemon::{Daemon, wait_for};
use crate::mounts;
use crate::node::Node;

/// Where a fresh agent keeps its things.
const FRESH_PINS: &str = "/sys/fs/bpf/fresh";
const FRESH_RUN: &str = "/run/netlb-fresh";
/// Lines of a difference that are shown.
const SHOWN: usize = 20;
/// The kinds whose lists decide what the maps say.
const KINDS: [&str; 2] = ["\"Service\"", "\"EndpointSlice\""];

/// The agent of a node.
pub(super) struct Agent<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
}

impl<'a> Agent<'a> {
    pub(super) fn new(cluster: &'a Cluster, node: &'a Node) -> Self {
        Self { cluster, node }
    }

    pub(super) fn name(&self) -> &str {
        &self.node.host.name
    }

    /// Its process.
    pub(super) fn pid(&self) -> Result<u32> {
        let status = status(self.node, RUN_DIR)?.with_context(|| format!("no agent runs on {}", self.name()))?;
        let pid = status.get("pid").and_then(Value::as_u64).context("a status without a pid")?;
        u32::try_from(pid).context("process id out of range")
    }

    /// Whether an agent is ready that is not `before`.
    pub(super) fn is_back(&self, before: u32) -> Result<bool> {
        let Some(status) = status(self.node, RUN_DIR)? else { return Ok(false) };
        let ready = status.pointer("/ready/ready").and_then(Value::as_bool) == Some(true);
        Ok(ready && status.get("pid").and_then(Value::as_u64) != Some(u64::from(before)))
    }

    /// What the agent has written into its maps. Without removed backends: they take no flow, and stand only until none names them.
    pub(super) fn dump(&self) -> Result<String> {
        let text = self.netlb(&["dump", "--config-only", "--pin-path", PIN_PATH])?;
        let lines = text.lines().filter(|line| !(line.starts_with("backend ") && line.contains(" state=removed ")));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// How many packets were dropped or refused, by the reason.
    pub(super) fn lost(&self) -> Result<Vec<(String, u64)>> {
        let rows: Vec<Value> =
            serde_json::from_str(&self.netlb(&["drops", "--output", "json", "--pin-path", PIN_PATH])?)?;
        let row = |row: &Value| {
            let text = |field: &str| row.get(field).and_then(Value::as_str).map(str::to_owned);
            let packets = row.get("packets").and_then(Value::as_u64).filter(|packets| *packets > 0)?;
            (text("kind")? != "note").then_some((text("reason")?, packets))
        };
        Ok(rows.iter().filter_map(row).collect())
    }

    /// How many lists it has had of the kinds that count.
    pub(super) fn lists(&self) -> Result<usize> {
        Ok(listed(&agents::log(self.node)?).count())
    }

    /// Waits until the maps are `expected`, by lists beyond the first `known`. Returns how long after the last of these that was first seen,
    /// and what was last wrong before.
    pub(super) fn time_to(
        &self,
        expected: &str,
        known: usize,
        patience: Duration,
        stop: &Stop,
    ) -> Result<(Duration, String)> {
        let (deadline, mut wrong) = (Instant::now() + patience, String::new());
        loop {
            let now = self.dump()?;
            let seen = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?;
            if now == expected {
                let log = agents::log(self.node)?;
                let last = listed(&log).skip(known).last();
                let last = last.with_context(|| format!("the maps of {} changed without a list", self.name()))?;
                return Ok((since(last, seen)?, wrong));
            }
            wrong = difference(expected, &now);
            stop.check()?;
            if Instant::now() >= deadline {
                bail!("the maps of {} are not right:\n{wrong}", self.name());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn netlb(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.cluster.options().netlb);
        command.args(arguments);
        let output = self.node.host.place.output("netlb", command, b"", &self.cluster.options().stop)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`netlb {}` on {}: {}", arguments.join(" "), self.name(), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// An agent that knows nothing yet, beside the other of its node; it attaches no programs.
pub(super) struct Fresh<'a> {
    agent: &'a Agent<'a>,
    daemon: Daemon,
}

impl<'a> Fresh<'a> {
    /// Starts it; it follows the second API server.
    pub(super) fn start(agent: &'a Agent<'a>) -> Result<Self> {
        let (options, node) = (agent.cluster.options(), agent.node);
        let (netlb, name, accel) = (options.netlb.clone(), node.host.name.clone(), options.accel.clone());
        let admin = agent.cluster.control_plane().admin().to_owned();
        let daemon = Daemon::start(&format!("netlb-fresh-{name}"), &node.host.place, &agent.cluster.logs(), {
            move || {
                let mut command = Command::new(&netlb);
                command.arg("agent").arg("--kubeconfig").arg(&admin).args(["--api-server", &control_plane::second()]);
                command.args(["--node-name", &name, "--accel", &accel, "--cgroup", mounts::CGROUP, "--detached"]);
                command.args(["--pin-path", FRESH_PINS, "--run-dir", FRESH_RUN]);
                command.args(["--healthz-bind-address", "none", "--metrics-bind-address", "none"]);
                command
            }
        })?;
        Ok(Self { agent, daemon })
    }

    /// What it has written into its maps once it knows all. It is gone then.
    pub(super) fn maps(self, patience: Duration) -> Result<String> {
        let (agent, what) = (self.agent, format!("a fresh agent on {}", self.agent.name()));
        let ready = || {
            let status = status(agent.node, FRESH_RUN)?;
            Ok(status.is_some_and(|status| status.get("synced").and_then(Value::as_bool) == Some(true)))
        };
        wait_for(&what, patience, &[&self.daemon], &agent.cluster.options().stop, ready)?;
        let dump = agent.netlb(&["dump", "--config-only", "--pin-path", FRESH_PINS])?;
        self.daemon.kill9()?;
        agent.netlb(&["cleanup", "--pin-path", FRESH_PINS, "--run-dir", FRESH_RUN])?;
        Ok(dump.trim_end().to_owned())
    }
}

/// What an agent says of itself, if there is one.
fn status(node: &Node, run_dir: &str) -> Result<Option<Value>> {
    let path = node.file(&format!("{run_dir}/status.json"))?;
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display())).map(Some),
        Err(_) => Ok(None),
    }
}

/// The lines of an agent's log that tell of whole lists.
fn listed(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| {
        line.split_once(" listed kind=").is_some_and(|(_, rest)| KINDS.iter().any(|kind| rest.starts_with(kind)))
    })
}

/// The time from the one that the agent has put into a line (RFC 3339, UTC) to `seen`, since 1970. Both are within a day.
fn since(line: &str, seen: Duration) -> Result<Duration> {
    const DAY: f64 = 86_400.0;
    // In front of it stands what containerd adds: time, stream, and whether the line is whole.
    let stamp = line.split(' ').nth(3).and_then(|stamp| stamp.strip_suffix('Z')?.split_once('T'));
    let (_, time) = stamp.with_context(|| format!("a line without a time: {line}"))?;
    let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>().context("not a time")?;
    let [hours, minutes, seconds] = parts[..] else { bail!("{time} is no time of a day") };
    let then = hours.mul_add(3600.0, minutes.mul_add(60.0, seconds));
    Ok(Duration::from_secs_f64((seen.as_secs_f64() % DAY - then).rem_euclid(DAY)))
}

/// Lines that only one of two texts has; of many the first, and how many there are.
pub(super) fn difference(expected: &str, found: &str) -> String {
    let only = |mark: char, some: &str, other: &str| -> Vec<String> {
        let others: std::collections::BTreeSet<&str> = other.lines().collect();
        some.lines().filter(|line| !others.contains(line)).map(|line| format!("{mark} {line}")).collect()
    };
    let mut lines = [only('-', expected, found), only('+', found, expected)].concat();
    let more = lines.len().saturating_sub(SHOWN);
    if more > 0 {
        lines.truncate(SHOWN);
        lines.push(format!("… and {more} lines more"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_found_in_a_log_and_timed() {
        let log = "\
2026-11-21T19:26:04.49912Z stderr F 2026-11-21T19:26:04.498966Z DEBUG listed kind=\"Service\" objects=2 version=371
2026-11-21T19:26:04.49921Z stderr F 2026-11-21T19:26:04.499058Z DEBUG listed kind=\"ServiceCIDR\" objects=1 version=371
2026-11-21T23:59:59.90000Z stderr F 2026-11-21T23:59:59.900000Z DEBUG listed kind=\"EndpointSlice\" objects=2 version=371
2026-11-21T23:59:59.95000Z stderr F 2026-11-21T23:59:59.950000Z  INFO ready: Services are in effect services=2
";
        let lines: Vec<&str> = listed(log).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let midnight = Duration::from_secs(20_000 * 86_400);
        let time = since(lines[1], midnight + Duration::from_millis(150)).unwrap();
        assert_eq!((time.as_secs_f64() * 1000.0).round(), 250.0);
    }

    #[test]
    fn a_difference_names_the_lines_of_either_side() {
        assert_eq!(difference("a\nb\n", "b\nc\n"), "- a\n+ c");
    }
}
