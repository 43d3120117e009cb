//! The socket by which other commands ask a live run to change something: one line of JSON there, one line back.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

const SOCKET: &str = "control.sock";
/// A change may have to wait for agents.
const PATIENCE: Duration = Duration::from_secs(120);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Change the number of a workload's pods.
    Scale {
        /// `namespace/name`, or a name in `default`.
        workload: String,
        /// How many.
        replicas: u32,
    },
    /// Kill a pod's process.
    Kill {
        /// `namespace/name`, or a name in `default`; a workload's name stands for its first pod.
        pod: String,
    },
}

/// The run's end of the socket.
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Opens the socket in the run's folder.
    ///
    /// # Errors
    /// When it exists already.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(SOCKET);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot open {}", path.display()))?;
        listener.set_nonblocking(true).context("cannot make the control socket non-blocking")?;
        Ok(Self { listener })
    }

    /// Answers what was asked since the last time.
    ///
    /// # Errors
    /// When the socket is broken; what `handle` fails with is told to whoever asked.
    pub fn poll(&self, mut handle: impl FnMut(Request) -> Result<String>) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot accept on the control socket"),
            };
            if let Err(error) = converse(&stream, &mut handle) {
                tracing::warn!("on the control socket: {error:#}");
            }
        }
    }
}

fn converse(mut stream: &UnixStream, handle: &mut impl FnMut(Request) -> Result<String>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let reply = serde_json::from_str(&line)
        .context("cannot understand the request")
        .and_then(handle)
        .map_err(|error| format!("{error:#}"));
    writeln!(stream, "{}", serde_json::to_string(&reply)?)?;
    Ok(())
}

/// Asks the run whose folder this is.
///
/// # Errors
/// When the run does not answer, or says no.
pub fn ask(folder: &Path, request: &Request) -> Result<String> {
    let mut stream = UnixStream::connect(folder.join(SOCKET))
        .context("the run takes no requests; only one that stays (in a terminal, without --once) does")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{}", serde_json::to_string(request)?).context("cannot ask the run")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).context("the run does not answer")?;
    let reply: Result<String, String> = serde_json::from_str(&line).context("the run's answer is cut short")?;
    reply.map_err(|error| anyhow!(error))
}
