//! The real agent on a node: started, asked, waited for, killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::process::{Process, Stop};
use crate::source::Revision;
use crate::topology::Node;

/// Where the agent pins its maps, programs and links, inside the node's own bpffs.
pub const PIN_PATH: &str = "/sys/fs/bpf/netlb";
/// How long an agent may take to apply a revision before the run calls it stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What differs between agents.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `auto`, `stack` or `redirect`.
    pub delivery: String,
    /// `none` or `socket`.
    pub accel: String,
    /// Credentials for an API server, which is followed instead of the folder.
    pub kubeconfig: Option<PathBuf>,
    /// Load the programs but attach none.
    pub detached: bool,
    /// Further arguments, as they are.
    pub extra: Vec<String>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            delivery: "auto".to_owned(),
            accel: "none".to_owned(),
            kubeconfig: None,
            detached: false,
            extra: Vec::new(),
        }
    }
}

/// What `netlb backend list` says of one backend of one Service port.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendRow {
    /// `namespace/name:port name`.
    pub service: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The pod's address.
    pub address: std::net::IpAddr,
    /// The pod's port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// New flows sent there since the maps were made.
    pub flows: u64,
}

/// An agent on a node. Clones are the same agent; it ends with the last of them, or with the run.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<Node>,
    program: PathBuf,
    source: PathBuf,
    run_dir: PathBuf,
    log: PathBuf,
    options: AgentOptions,
    stop: Stop,
    process: Mutex<Option<Process>>,
}

impl Agent {
    /// Starts the agent; it reads `source` and keeps its files below `state`.
    ///
    /// # Errors
    /// When the program is missing or cannot be started.
    pub fn start(
        node: &Arc<Node>,
        program: &Path,
        source: &Path,
        state: &Path,
        options: AgentOptions,
        stop: &Stop,
    ) -> Result<Self> {
        if !program.is_file() {
            bail!("there is no agent at {}; do `cargo build --release -p netlb-user`", program.display());
        }
        let run_dir = run_dir(state, node.number);
        fs::create_dir_all(&run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
        let agent = Self {
            inner: Arc::new(Inner {
                node: Arc::clone(node),
                program: program.to_owned(),
                source: source.to_owned(),
                log: state.join(format!("agent-{}.log", node.name())),
                run_dir,
                options,
                stop: stop.clone(),
                process: Mutex::new(None),
            }),
        };
        agent.spawn()?;
        Ok(agent)
    }

    fn spawn(&self) -> Result<()> {
        let inner = &self.inner;
        let log = File::options().create(true).append(true).open(&inner.log);
        let log = log.with_context(|| format!("cannot open {}", inner.log.display()))?;
        let mut command = Command::new(&inner.program);
        let (flag, file) = match &inner.options.kubeconfig {
            Some(kubeconfig) => ("--kubeconfig", kubeconfig),
            None => ("--source", &inner.source),
        };
        command
            .arg("agent")
            .arg(flag)
            .arg(file)
            .args(["--node-name", &inner.node.name()])
            .args(["--pin-path", PIN_PATH])
            .arg("--cgroup")
            .arg(inner.node.cgroup_path())
            .arg("--run-dir")
            .arg(&inner.run_dir)
            .args(["--delivery", &inner.options.delivery])
            .args(["--accel", &inner.options.accel])
            .args(inner.options.detached.then_some("--detached"))
            .args(&inner.options.extra)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().context("cannot share the agent's log")?)
            .stderr(log);
        // A status of an agent that is no more would be taken for this one's.
        fs::remove_file(inner.run_dir.join("status.json"))
            .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        *self.lock() = Some(inner.node.place.spawn(&format!("the agent of {}", inner.node.name()), command)?);
        Ok(())
    }

    /// Kills the agent with SIGKILL. What it pinned stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill9(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Asks the agent to end (SIGTERM), and kills it if it does not within ten seconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn terminate(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut process) => process.terminate(Duration::from_secs(10)).map(drop),
            None => Ok(()),
        }
    }

    /// Starts the agent again, after [`Agent::kill9`] or [`Agent::terminate`], with the same options.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn restart(&self) -> Result<()> {
        self.kill9()?;
        self.spawn()
    }

    /// The agent's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::pid)
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// The last thing it wrote to `status.json`; `None` before the first time.
    ///
    /// # Errors
    /// When the file is not JSON.
    pub fn status(&self) -> Result<Option<Value>> {
        let path = self.inner.run_dir.join("status.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is not JSON; the agent must replace it whole", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Waits until the agent reports that it has applied `revision`.
    ///
    /// # Errors
    /// When it ends before, with the end of its log; when it takes longer than a minute; when the run is stopped.
    pub fn wait_applied(&self, revision: Revision) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            if status.as_ref().and_then(applied).is_some_and(|applied| applied >= revision) {
                return Ok(());
            }
            self.inner.stop.check()?;
            let ended = match self.lock().as_mut() {
                Some(process) => process.try_wait()?.map(|status| status.to_string()),
                None => Some("not started".to_owned()),
            };
            if let Some(ended) = ended {
                bail!("the agent of {} ended ({ended}):\n{}", self.inner.node.name(), self.log_tail(30));
            }
            if Instant::now() >= deadline {
                bail!(
                    "the agent of {} has not applied revision {revision} after {} s; its status: {}\n{}",
                    self.inner.node.name(),
                    PATIENCE.as_secs(),
                    status.unwrap_or_default(),
                    self.log_tail(30)
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The end of the agent's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.inner.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        format!("the end of {}:\n{}", self.inner.log.display(), tail.join("\n"))
    }

    /// Runs `netlb` with `arguments` and the agent's paths, inside the node, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn netlb(&self, arguments: &[&str]) -> Result<String> {
        let inner = &self.inner;
        let mut command = Command::new(&inner.program);
        command.args(arguments).args(["--pin-path", PIN_PATH]).arg("--run-dir").arg(&inner.run_dir);
        let what = format!("netlb {}", arguments.join(" "));
        let output = inner.node.place.output(&what, command, b"", &inner.stop)?;
        if !output.status.success() {
            bail!("{what} failed on {}: {}", inner.node.name(), String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("{what} printed something that is not text"))
    }

    /// All backends with their counters.
    ///
    /// # Errors
    /// When `netlb` fails or prints something else.
    pub fn backends(&self) -> Result<Vec<BackendRow>> {
        let text = self.netlb(&["backend", "list", "-o", "json"])?;
        serde_json::from_str(&text).context("cannot understand `netlb backend list -o json`")
    }

    /// One of netlb's counters, by its reason's name.
    ///
    /// # Errors
    /// When `netlb` fails, prints something else or has no such counter.
    pub fn counter(&self, reason: &str) -> Result<u64> {
        let rows: Value = serde_json::from_str(&self.netlb(&["drops", "-o", "json"])?)
            .context("cannot understand `netlb drops -o json`")?;
        let mut rows = rows.as_array().into_iter().flatten();
        let row = rows.find(|row| row.get("reason").and_then(Value::as_str) == Some(reason));
        row.and_then(|row| row.get("packets")?.as_u64()).with_context(|| format!("netlb has no counter {reason}"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.inner.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a node's agent keeps its own files.
#[must_use]
pub fn run_dir(state: &Path, node: u8) -> PathBuf {
    state.join(format!("agent-node{node}"))
}

/// The revision that a status reports, once the agent has read its source whole.
fn applied(status: &Value) -> Option<Revision> {
    if status.get("synced")? != &Value::Bool(true) {
        return None;
    }
    match status.get("revision")? {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_u64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::applied;
    use serde_json::json;

    #[test]
    fn only_a_synced_status_counts() {
        assert_eq!(applied(&json!({"synced": true, "revision": "42"})), Some(42));
        assert_eq!(applied(&json!({"synced": true, "revision": 42})), Some(42));
        assert_eq!(applied(&json!({"synced": false, "revision": "42"})), None);
        assert_eq!(applied(&json!({"synced": true, "revision": null})), None);
    }
}
