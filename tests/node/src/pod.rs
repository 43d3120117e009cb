//! A running pod: a namespace on a wire, and the server process inside.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::address::Dual;
use crate::cluster::{PodKey, PodRecord};
use crate::helper::Helper;
use crate::netns::NetNs;
use crate::process::{Place, Process};
use crate::topology::Node;
use crate::wire::{Counts, Ports, ServerConfig, ServerReply, ServerRequest};

/// A pod with its process. Dropped, the process is killed and the wire removed.
pub struct Pod {
    key: PodKey,
    addresses: Dual,
    node: Arc<Node>,
    device: Option<String>,
    server: Mutex<Server>,
    place: Place,
}

struct Server {
    process: Process,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    listening: Ports,
}

impl Pod {
    /// Makes the pod's namespace and starts its server, which answers on `ports` when this returns.
    ///
    /// # Errors
    /// Names what failed: the wire, the process or a port.
    pub fn start(key: &PodKey, record: &PodRecord, node: &Arc<Node>, helper: &Helper, ports: &Ports) -> Result<Self> {
        let start = || {
            let (place, device) = if record.host_network {
                (node.host_pod(&key.flat())?, None)
            } else {
                let port = node.attach_pod(&key.flat(), record.addresses)?;
                (port.place, Some(port.device))
            };
            let bind = if record.host_network {
                record.addresses.both().to_vec()
            } else {
                vec![std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()]
            };
            let config = ServerConfig { pod: key.name.clone(), addresses: record.addresses.both().to_vec(), bind };
            let server = Mutex::new(Server::start(key, &place, helper, &config)?);
            let pod =
                Self { key: key.clone(), addresses: record.addresses, node: Arc::clone(node), device, server, place };
            pod.listen(ports)?;
            anyhow::Ok(pod)
        };
        start().with_context(|| format!("cannot start the pod {key}"))
    }

    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> &PodKey {
        &self.key
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> Dual {
        self.addresses
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The name of the node's end of its wire; none if it shares the node's network.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Where its processes run.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its network namespace.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        self.place.net()
    }

    /// Runs `f` on a thread inside the pod's network namespace (but in the caller's cgroup).
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.net().run(f)
    }

    /// Starts a program inside the pod: in its network namespace and its cgroup.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.place.spawn(&format!("a program in {}", self.key), command)
    }

    /// Makes the server listen on more ports; they answer when this returns.
    ///
    /// # Errors
    /// When a port is taken or the server is dead.
    pub fn listen(&self, ports: &Ports) -> Result<()> {
        let mut server = self.lock();
        if server.listening.covers(ports) {
            return Ok(());
        }
        match server.ask(&ServerRequest::Listen(ports.clone()))? {
            ServerReply::Listening(listening) => {
                server.listening = listening;
                Ok(())
            }
            ServerReply::Error(error) => bail!("the pod {} cannot serve: {error}", self.key),
            ServerReply::Counts(_) | ServerReply::Draining => {
                bail!("the pod {} answered another question", self.key)
            }
        }
    }

    /// Makes the server accept no more connections, and end each that is open after its next answer.
    ///
    /// # Errors
    /// When the server is dead.
    pub fn drain(&self) -> Result<()> {
        match self.lock().ask(&ServerRequest::Drain)? {
            ServerReply::Draining => Ok(()),
            ServerReply::Error(error) => bail!("the pod {}: {error}", self.key),
            ServerReply::Listening(_) | ServerReply::Counts(_) => {
                bail!("the pod {} answered another question", self.key)
            }
        }
    }

    /// What has arrived at the server so far.
    ///
    /// # Errors
    /// When the server is dead.
    pub fn counts(&self) -> Result<Counts> {
        match self.lock().ask(&ServerRequest::Counts)? {
            ServerReply::Counts(counts) => Ok(counts),
            ServerReply::Error(error) => bail!("the pod {}: {error}", self.key),
            ServerReply::Listening(_) | ServerReply::Draining => {
                bail!("the pod {} answered another question", self.key)
            }
        }
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock().process.pid()
    }

    /// Kills the server with SIGKILL, as a crash would; namespace and wire stay.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        self.lock().process.kill().map(drop)
    }

    /// Whether the server runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.lock().process.try_wait()?.is_none())
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!("{error:#}");
        }
        if let Some(device) = &self.device {
            self.node.detach_pod(device);
        }
    }
}

impl Server {
    fn start(key: &PodKey, place: &Place, helper: &Helper, config: &ServerConfig) -> Result<Self> {
        let mut command = helper.command("serve");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = place.spawn(&key.to_string(), command)?;
        let requests = process.pipes().stdin.take().context("the server has no input")?;
        let replies = BufReader::new(process.pipes().stdout.take().context("the server has no output")?);
        let mut server = Self { process, requests, replies, listening: Ports::default() };
        server.send(&serde_json::to_string(config)?)?;
        Ok(server)
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.requests.write_all(format!("{line}\n").as_bytes()).context("the server is dead")
    }

    fn ask(&mut self, request: &ServerRequest) -> Result<ServerReply> {
        self.send(&serde_json::to_string(request)?)?;
        let mut line = String::new();
        if self.replies.read_line(&mut line).context("cannot read from the server")? == 0 {
            bail!("the server is dead");
        }
        serde_json::from_str(&line).with_context(|| format!("cannot understand the server: {line}"))
    }
}
