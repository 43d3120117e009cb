//! Child processes that cannot outlive the run.
//!
//! Each is started by a thread that lives as long as its place does, and asks the kernel to be killed when that thread
//! dies (`PR_SET_PDEATHSIG` is about the forking thread, not its process). So `kill -9` of the run ends them all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use crate::cgroup::Cgroup;
use crate::netns::{MountNs, NetNs};

/// A wish to end, shared by a signal handler and all that waits.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks everything to end. Safe to call from a signal handler's thread.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails once somebody asked, so that waiting loops end by `?`.
    ///
    /// # Errors
    /// When somebody asked.
    pub fn check(&self) -> Result<()> {
        if self.requested() { bail!("interrupted") } else { Ok(()) }
    }
}

/// Where processes run: a network namespace, perhaps a mount namespace and a cgroup. Clones are the same place.
#[derive(Clone)]
pub struct Place {
    inner: Arc<Inner>,
}

struct Inner {
    net: NetNs,
    jobs: mpsc::Sender<Job>,
    // Fields drop in order: the thread ends when `jobs` goes, and only then the group is removed.
    cgroup: Option<Arc<Cgroup>>,
}

struct Job {
    command: Command,
    reply: mpsc::SyncSender<io::Result<Child>>,
}

impl Place {
    /// Starts the place's own thread, inside the namespaces.
    ///
    /// # Errors
    /// When the namespaces cannot be entered.
    pub fn new(name: &str, net: NetNs, mount: Option<MountNs>, cgroup: Option<Arc<Cgroup>>) -> Result<Self> {
        Self::start(name, net, mount, cgroup, false)
    }

    /// As [`Place::new`], with `name` as the host name that processes see.
    ///
    /// # Errors
    /// As [`Place::new`], and when the caller may not make a UTS namespace.
    pub fn host(name: &str, net: NetNs, mount: MountNs, cgroup: Arc<Cgroup>) -> Result<Self> {
        Self::start(name, net, Some(mount), Some(cgroup), true)
    }

    fn start(name: &str, net: NetNs, mount: Option<MountNs>, cgroup: Option<Arc<Cgroup>>, named: bool) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::sync_channel(1);
        let namespace = net.clone();
        let hostname = named.then(|| name.to_owned());
        std::thread::Builder::new()
            .name(format!("place-{name}"))
            .spawn(move || {
                let result = namespace
                    .enter()
                    .and_then(|()| mount.map_or(Ok(()), |mount| mount.enter()))
                    .and_then(|()| hostname.map_or(Ok(()), |hostname| take_name(&hostname)));
                let failed = result.is_err();
                if ready.send(result).is_err() || failed {
                    return;
                }
                for mut job in queue {
                    let outcome = job.command.spawn();
                    if let Err(mpsc::SendError(Ok(mut orphan))) = job.reply.send(outcome) {
                        // Nobody waits for it any more; a killed child that cannot be reaped is the kernel's affair.
                        orphan.kill().and_then(|()| orphan.wait()).ok();
                    }
                }
            })
            .with_context(|| format!("cannot start the thread of {name}"))?;
        entered.recv().map_err(|_| anyhow!("the thread of {name} died"))??;
        Ok(Self { inner: Arc::new(Inner { net, jobs, cgroup }) })
    }

    /// The place's network namespace.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        &self.inner.net
    }

    /// The place's cgroup directory, if it has one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.inner.cgroup.as_deref()
    }

    /// Starts `command` here. It is in its cgroup before its first instruction, in a process group of its own (Ctrl-C
    /// in the terminal does not reach it), and dies with the run.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let group = match self.cgroup() {
            Some(group) => {
                let path = group.path().join("cgroup.procs");
                Some(
                    File::options()
                        .write(true)
                        .open(&path)
                        .with_context(|| format!("cannot open {}", path.display()))?,
                )
            }
            None => None,
        };
        let parent = i32::try_from(std::process::id()).context("process id out of range")?;
        command.process_group(0);
        let hook = move || {
            if let Some(group) = &group {
                // SAFETY: the descriptor is open (the closure owns the file) and the buffer is one readable byte.
                if unsafe { libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1) } != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
            // SAFETY: prctl with these arguments only sets a number in the calling process.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // The run may have died between fork and prctl; then nobody is left to send the signal.
            // SAFETY: getppid has no preconditions.
            if unsafe { libc::getppid() } != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: the hook calls write, prctl and getppid only, which are safe between fork and exec; it allocates nothing.
        unsafe { command.pre_exec(hook) };
        let (reply, outcome) = mpsc::sync_channel(1);
        self.inner.jobs.send(Job { command, reply }).map_err(|_| anyhow!("the thread that starts {name} is gone"))?;
        let child = outcome
            .recv()
            .map_err(|_| anyhow!("the thread that starts {name} is gone"))?
            .with_context(|| format!("cannot start {name} ({program})"))?;
        tracing::debug!(name, pid = child.id(), "started");
        Ok(Process { child, name: name.to_owned(), _place: self.clone() })
    }
}

impl Place {
    /// Runs `command` to its end with `input`, and returns what it printed. Once `stop` is requested it is killed.
    ///
    /// # Errors
    /// When it cannot be started, or was stopped. A failing exit status is not an error here.
    pub fn output(&self, name: &str, mut command: Command, input: &[u8], stop: &Stop) -> Result<Output> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = self.spawn(name, command)?;
        let mut stdin = process.pipes().stdin.take().context("a child without input")?;
        let mut stdout = process.pipes().stdout.take().context("a child without output")?;
        let mut stderr = process.pipes().stderr.take().context("a child without error output")?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that does not read all of its input is free to do so.
                stdin.write_all(input).unwrap_or_default();
            });
            let (errors, error_text) = mpsc::channel();
            scope.spawn(move || {
                let mut text = Vec::new();
                // What could be read before an error is all there is to show.
                stderr.read_to_end(&mut text).unwrap_or_default();
                errors.send(text).unwrap_or_default();
            });
            let (done, text) = mpsc::channel();
            scope.spawn(move || {
                let mut text = Vec::new();
                let result = stdout.read_to_end(&mut text).map(|_| text);
                done.send(result).unwrap_or_default();
            });
            loop {
                match text.recv_timeout(Duration::from_millis(100)) {
                    Ok(text) => {
                        let status = process.child.wait().with_context(|| format!("cannot wait for {name}"))?;
                        let stderr = error_text.recv().unwrap_or_default();
                        let stdout = text.with_context(|| format!("cannot read from {name}"))?;
                        return Ok(Output { status, stdout, stderr });
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        if stop.requested() {
                            process.kill()?;
                        }
                        stop.check()?;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the thread that reads from {name} died"),
                }
            }
        })
    }
}

/// Gives the calling thread, and what it starts, a host name of its own.
fn take_name(hostname: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUTS).context("cannot make a UTS namespace; run as root")?;
    sethostname(hostname).with_context(|| format!("cannot take the host name {hostname}"))
}

/// A running child; dropped, it is killed and reaped.
pub struct Process {
    child: Child,
    name: String,
    _place: Place,
}

impl Process {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipes that were asked for in the command.
    pub fn pipes(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its end, if it has ended.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Sends SIGKILL and reaps.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Sends SIGTERM and, if it has not ended after `grace`, SIGKILL.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).context("process id out of range")?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
            .with_context(|| format!("cannot stop {}", self.name))?;
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!("{error:#}");
        }
    }
}
