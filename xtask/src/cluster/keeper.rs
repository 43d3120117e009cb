//! The process that holds a cluster: it outlives the command that starts it, and the cluster does not outlive it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netlb_testcluster::{Cluster, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Shape;
use super::interrupt::Interrupt;

/// What the keeper says when the cluster is ready: the last line that anybody reads.
const READY: &str = "ready";
/// How long a cluster may take to go.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts a keeper and shows what it says. Returns its process id once the cluster is ready; if it will not be, the keeper has
/// said why, and nothing is left.
pub(super) fn start(shape: &Shape, interrupt: &Interrupt) -> Result<Option<u32>> {
    let (said, says) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe().context("cannot find the running program")?);
    command.args(["cluster", "keep", "--proxy", shape.proxy.name(), "--accel", &shape.accel]);
    command.args(shape.nodes.map(|nodes| format!("--nodes={nodes}")));
    command.stdin(Stdio::null()).stdout(says.try_clone().context("cannot share the pipe")?).stderr(says);
    let mut keeper = command.spawn().context("cannot start the keeper by setsid")?;
    // The command holds the pipe's other end: nobody would see it close.
    drop(command);
    // The keeper is in a session of its own, where Ctrl-C does not reach it.
    interrupt.pass_to(keeper.id())?;
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what the keeper says")?;
        if line == READY {
            return Ok(Some(keeper.id()));
        }
        println!("{line}");
    }
    keeper.wait().context("cannot wait for the keeper")?;
    interrupt.forget(keeper.id());
    Ok(None)
}

/// Holds a cluster until a signal says to end.
pub(super) fn keep(options: Options) -> Result<ExitCode> {
    let (stop, handler) = (options.stop.clone(), options.stop.clone());
    let (wake, ended) = std::sync::mpsc::channel();
    ctrlc::set_handler(move || {
        handler.request();
        // Nobody listens any more when a second signal comes.
        wake.send(()).unwrap_or_default();
    })
    .context("cannot listen for signals")?;
    // Whoever started us may be gone: then there is nobody to tell.
    let say = |text: &str| writeln!(std::io::stdout(), "{text}").unwrap_or_default();
    match Cluster::start(options, say) {
        Ok(_cluster) => {
            say(READY);
            ended.recv().context("the handler of signals is gone")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(_) if stop.requested() => {
            say("Interrupted; everything is removed.");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Asks the keeper `pid` to end, and waits until its cluster's `folder` is gone, which is removed last.
pub(crate) fn end(pid: u32, folder: &Path) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid).context("process id out of range")?);
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot end the cluster's process {pid}"))?;
    let deadline = Instant::now() + PATIENCE;
    while folder.exists() {
        if Instant::now() >= deadline {
            bail!(
                "process {pid} does not remove its cluster within {} s; kill it, and do this again",
                PATIENCE.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
