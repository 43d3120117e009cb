//! Load by HTTP: connections that stay open and are used again and again, and new ones at a steady rate. Whatever goes wrong
//! with one of them is an error: nothing is tried twice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

/// Longest wait for what should happen at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often [`main`] says how far it is.
const REPORT: Duration = Duration::from_millis(200);

/// What a client makes of answers.
pub trait Judge: Sync {
    /// What it knows when it asks.
    type Known;

    /// What is known now.
    fn known(&self) -> Self::Known;

    /// Whether `answer` may have come from where it did, to a client that knew `known` when it asked; `new`: over a new connection.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn judge(&self, known: &Self::Known, answer: &str, new: bool) -> Result<()>;
}

/// Clients that share what they know, and end together. They act in the network namespaces of the threads that call them.
pub struct Load<J> {
    /// What they make of answers.
    pub judge: J,
    stop: AtomicBool,
    opened: AtomicU64,
    asked: AtomicU64,
    slowest: AtomicU64,
}

/// What clients have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Connections that were opened, each with an answer.
    pub opened: u64,
    /// Answers over connections that were open.
    pub asked: u64,
    /// The longest time that a connection with its first answer, or a later answer, took, in microseconds.
    pub slowest_us: u64,
}

/// A connection.
type Stream = BufReader<TcpStream>;

impl<J: Judge> Load<J> {
    /// Nothing yet.
    pub fn new(judge: J) -> Self {
        let [opened, asked, slowest] = [const { AtomicU64::new(0) }; 3];
        Self { judge, stop: AtomicBool::new(false), opened, asked, slowest }
    }

    /// Makes all clients end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// What they have done.
    pub fn done(&self) -> Done {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Done { opened: read(&self.opened), asked: read(&self.asked), slowest_us: read(&self.slowest) }
    }

    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn took(&self, since: Instant) {
        self.slowest.fetch_max(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Opens a connection and asks once.
    fn open(&self, to: SocketAddr, close: bool) -> Result<(Stream, bool)> {
        let (known, started) = (self.judge.known(), Instant::now());
        let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let (answer, closing) = ask(&mut stream, close).with_context(|| format!("over a new connection to {to}"))?;
        self.took(started);
        self.judge.judge(&known, &answer, true).with_context(|| format!("over a new connection to {to}"))?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok((stream, closing))
    }

    /// Holds `count` connections open and uses each once within `turn`, again and again; one that the server ends in order is
    /// opened anew.
    ///
    /// # Errors
    /// The first thing that goes wrong.
    pub fn hold(&self, targets: &[SocketAddr], count: usize, turn: Duration) -> Result<()> {
        let mut streams = Vec::new();
        for target in targets.iter().cycle().take(count) {
            streams.push((*target, self.open(*target, false)?.0));
        }
        let pause = turn / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        while self.running() {
            for (target, stream) in &mut streams {
                let (known, started) = (self.judge.known(), Instant::now());
                let used = ask(stream, false).and_then(|(answer, closing)| {
                    self.took(started);
                    self.judge.judge(&known, &answer, false)?;
                    Ok(closing)
                });
                let closing = used.with_context(|| format!("over an open connection to {target}"))?;
                self.asked.fetch_add(1, Ordering::SeqCst);
                if closing {
                    *stream = self.open(*target, false)?.0;
                }
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// Opens connections at a steady rate, each for one request; what it is late with, it makes up for.
    ///
    /// # Errors
    /// The first thing that goes wrong.
    pub fn knock(&self, targets: &[SocketAddr], a_second: u32) -> Result<()> {
        let started = Instant::now();
        for (turn, target) in (0_u32..).zip(targets.iter().cycle()) {
            let due = started + Duration::from_secs(1) * turn / a_second;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if !self.running() {
                break;
            }
            self.open(*target, true)?;
        }
        Ok(())
    }
}

/// One request: the answer's body, and whether the server is about to close.
fn ask(stream: &mut Stream, close: bool) -> Result<(String, bool)> {
    let end = if close { "Connection: close\r\n" } else { "" };
    write!(stream.get_mut(), "GET /load HTTP/1.1\r\nHost: load\r\n{end}\r\n").context("send")?;
    let (mut length, mut closing) = (0, false);
    for turn in 0.. {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).context("receive")? > 0, "the connection ended before the answer");
        let line = line.trim_end().to_ascii_lowercase();
        ensure!(turn > 0 || line.starts_with("http/1.1 200"), "the answer {line:?}");
        if let Some(text) = line.strip_prefix("content-length: ") {
            length = text.parse().context("a length")?;
        }
        closing |= line == "connection: close";
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("receive")?;
    Ok((String::from_utf8_lossy(&body).into_owned(), closing))
}

/// What [`main`] is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where to; each gets as many connections as the others.
    pub targets: Vec<SocketAddr>,
    /// Connections that stay open.
    pub open: usize,
    /// How often each of them is used, in milliseconds.
    pub turn_ms: u64,
    /// New connections a second.
    pub a_second: u32,
    /// Threads for each of both.
    pub threads: usize,
}

/// How far [`main`] is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What its clients have done.
    pub done: Done,
    /// TCP segments that were sent again in its network namespace, by whomever, since that was made.
    pub sent_again: u64,
    /// What went wrong; whoever found it has ended.
    pub errors: Vec<String>,
}

/// Content with any answer that says something.
struct Content;

impl Judge for Content {
    type Known = ();

    fn known(&self) {}

    fn judge(&self, (): &(), answer: &str, _: bool) -> Result<()> {
        ensure!(!answer.is_empty(), "an empty answer");
        Ok(())
    }
}

/// Reads a [`Plan`] from the first line of standard input and carries it out until the input ends. Says its [`Progress`] now and then, and
/// at the end: a line of JSON each.
///
/// # Errors
/// When the plan is not understood.
pub fn main() -> Result<()> {
    let mut plan = String::new();
    std::io::stdin().read_line(&mut plan).context("cannot read the plan")?;
    let plan: Plan = serde_json::from_str(&plan).context("cannot understand the plan")?;
    let load = Load::new(Content);
    let (ended, end) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        // Whatever follows the plan means nothing.
        std::io::stdin().lines().for_each(drop);
        drop(ended);
    });
    std::thread::scope(|scope| {
        let (load, plan) = (&load, &plan);
        let (failed, failures) = std::sync::mpsc::channel();
        for turn in 0..plan.threads.max(1) {
            let share = |all: usize| all / plan.threads.max(1) + usize::from(turn < all % plan.threads.max(1));
            let (open, rate) = (share(plan.open), u32::try_from(share(plan.a_second as usize)).unwrap_or(u32::MAX));
            let mut targets = plan.targets.clone();
            targets.rotate_left(turn % plan.targets.len().max(1));
            let holder = (failed.clone(), targets.clone());
            scope.spawn(move || {
                let result = load.hold(&holder.1, open, Duration::from_millis(plan.turn_ms));
                // Nobody listens any more once all ends.
                result.unwrap_or_else(|error| holder.0.send(format!("{error:#}")).unwrap_or_default());
            });
            let knocker = failed.clone();
            scope.spawn(move || {
                let result = if rate > 0 { load.knock(&targets, rate) } else { Ok(()) };
                result.unwrap_or_else(|error| knocker.send(format!("{error:#}")).unwrap_or_default());
            });
        }
        drop(failed);
        let mut errors = Vec::new();
        loop {
            let over = !matches!(end.recv_timeout(REPORT), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
            if over {
                load.stop();
                // All have ended when nobody can send any more.
                errors.extend(failures.iter());
            } else {
                errors.extend(failures.try_iter());
            }
            let progress = Progress { done: load.done(), sent_again: sent_again()?, errors: errors.clone() };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string(&progress)?)?;
            out.flush()?;
            if over {
                return Ok(());
            }
        }
    })
}

/// `RetransSegs` of /proc/net/snmp (RFC 4022), IPv6's among them.
fn sent_again() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/net/snmp").context("cannot read /proc/self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    found.and_then(|(_, value)| value.parse().ok()).ok_or_else(|| anyhow!("/proc/self/net/snmp names no RetransSegs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers the first requests of each connection, then closes without a word.
    fn server(answers: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                for _ in 0..answers {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        if stream.read_line(&mut line).unwrap_or(0) == 0 {
                            break;
                        }
                    }
                    if write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").is_err() {
                        break;
                    }
                }
            }
        });
        at
    }

    #[test]
    fn a_connection_that_breaks_is_an_error() {
        let load = Load::new(Content);
        let error = format!("{:#}", load.hold(&[server(3)], 1, Duration::ZERO).unwrap_err());
        assert!(error.contains("over an open connection"), "{error}");
        assert_eq!((load.done().opened, load.done().asked), (1, 2));
    }

    #[test]
    fn a_refused_connection_is_an_error() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", Load::new(Content).knock(&[closed], 1000).unwrap_err());
        assert!(error.contains("connect to"), "{error}");
    }

    #[test]
    fn new_connections_come_at_their_rate_until_the_end() {
        let (load, at) = (Load::new(Content), server(1));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| load.knock(&[at], 10_000));
            while load.done().opened < 20 {
                std::thread::yield_now();
            }
            load.stop();
            client.join().unwrap().unwrap();
        });
        assert!(load.done().slowest_us > 0);
    }
}
