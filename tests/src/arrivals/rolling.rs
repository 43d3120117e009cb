//! A rolling update under load: pods are replaced one by one, each accepts for two seconds after it was marked terminating, then
//! ends its connections in order. Nobody who opens, uses or reopens a connection may notice.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::address::{self, Family};
use netlb_testnode::netns::NetNs;
use netlb_testnode::wire::Answer;

use crate::rig::Rig;
use crate::sockets;

const PODS: usize = 4;
const DOOR: u16 = 30_130;
/// Connections that stay open, and new ones a second; each thread has its share.
const OPEN: usize = 200;
const NEW_A_SECOND: u32 = 500;
const THREADS: usize = 8;
/// How long a pod accepts after it was marked.
const GRACE: Duration = Duration::from_secs(2);

fn objects(version: u8) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: rolled}}
spec:
  replicas: {PODS}
  strategy: {{rollingUpdate: {{maxSurge: 1}}}}
  template:
    metadata: {{labels: {{app: rolled, version: v{version}}}}}
    spec: {{containers: [{{name: c, ports: [{{containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: rolled}}
spec:
  type: NodePort
  selector: {{app: rolled}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {DOOR}}}]
"
    )
}

/// What clients and the update know of each other.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Pods that agents have reported as terminating: they get no new connections.
    leaving: Mutex<BTreeSet<String>>,
    /// Pods that are no more.
    gone: Mutex<BTreeSet<String>>,
    opened: AtomicU64,
    asked: AtomicU64,
}

impl Shared {
    fn names(set: &Mutex<BTreeSet<String>>) -> BTreeSet<String> {
        set.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }
}

/// One request over an open connection: who answered, and whether the server is about to close.
fn ask(stream: &mut BufReader<TcpStream>, close: bool) -> Result<(Answer, bool)> {
    let end = if close { "Connection: close\r\n" } else { "" };
    write!(stream.get_mut(), "GET /rolled HTTP/1.1\r\n{end}\r\n").context("send")?;
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
    Ok((String::from_utf8_lossy(&body).parse().map_err(anyhow::Error::msg)?, closing))
}

/// Opens a connection and asks once: neither a pod that is gone nor one that is known to leave may be the one to answer.
fn open(shared: &Shared, to: SocketAddr, close: bool) -> Result<(BufReader<TcpStream>, bool)> {
    let (leaving, gone) = (Shared::names(&shared.leaving), Shared::names(&shared.gone));
    let mut stream = BufReader::new(sockets::tcp(None, to)?);
    let (answer, closing) = ask(&mut stream, close)?;
    ensure!(!gone.contains(&answer.pod), "{}, which is gone, answered a new connection to {to}", answer.pod);
    ensure!(!leaving.contains(&answer.pod), "{}, which is leaving, answered a new connection to {to}", answer.pod);
    shared.opened.fetch_add(1, Ordering::SeqCst);
    Ok((stream, closing))
}

/// Holds connections open and uses each again and again; one that the server ends in order is opened anew.
fn hold(shared: &Shared, targets: &[SocketAddr], count: usize) -> Result<()> {
    let mut open_ones: Vec<(SocketAddr, BufReader<TcpStream>)> = Vec::new();
    for target in targets.iter().cycle().take(count) {
        open_ones.push((*target, open(shared, *target, false)?.0));
    }
    while shared.running() {
        for (target, stream) in &mut open_ones {
            let gone = Shared::names(&shared.gone);
            let (answer, closing) =
                ask(stream, false).with_context(|| format!("over an open connection to {target}"))?;
            ensure!(!gone.contains(&answer.pod), "{}, which is gone, answered over an open connection", answer.pod);
            shared.asked.fetch_add(1, Ordering::SeqCst);
            if closing {
                *stream = open(shared, *target, false)?.0;
            }
            std::thread::sleep(Duration::from_millis(8));
        }
    }
    Ok(())
}

/// Opens connections at a steady rate; what it is late with, it makes up for.
fn knock(shared: &Shared, targets: &[SocketAddr], a_second: u32) -> Result<()> {
    let started = Instant::now();
    for (turn, target) in (0_u32..).zip(targets.iter().cycle()) {
        let due = started + Duration::from_secs(1) * turn / a_second;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if !shared.running() {
            break;
        }
        open(shared, *target, true).with_context(|| format!("new connection {turn}"))?;
    }
    Ok(())
}

/// Replaces all pods, one after the other.
fn replace(rig: &Rig, shared: &Shared) -> Result<()> {
    let first: BTreeSet<String> = rig.node.pods_of("rolled").iter().map(|pod| pod.key().name.clone()).collect();
    let mut marked = Instant::now();
    let mut revision = rig.node.apply(&objects(2))?;
    let mut steps = 0;
    loop {
        rig.node.wait_applied(revision)?;
        let leaving = rig.node.terminating();
        // Those who went with this revision are gone now, those who are marked in it are known to leave.
        let names = |pods: &[Arc<netlb_testnode::Pod>]| -> BTreeSet<String> {
            pods.iter().map(|pod| pod.key().name.clone()).collect()
        };
        let before = Shared::names(&shared.leaving);
        let now = names(&leaving);
        shared.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(before.difference(&now).cloned());
        shared.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(now);
        if leaving.is_empty() {
            break;
        }
        ensure!(leaving.len() == 1, "{} pods leave at once", leaving.len());
        steps += 1;
        std::thread::sleep(GRACE.saturating_sub(marked.elapsed()));
        for pod in &leaving {
            pod.drain()?;
            rig.eventually("its clients have left a draining pod", || {
                let open = pod.counts()?.open;
                ensure!(open == 0, "{open} connections to {} are open", pod.key());
                Ok(())
            })?;
        }
        marked = Instant::now();
        revision = rig.node.remove_terminating()?;
    }
    let last: BTreeSet<String> = rig.node.pods_of("rolled").iter().map(|pod| pod.key().name.clone()).collect();
    ensure!(
        steps == PODS && last.len() == PODS && last.is_disjoint(&first),
        "{steps} steps from {first:?} to {last:?}"
    );
    Ok(())
}

pub(super) fn update(rig: &Rig) -> Result<()> {
    rig.apply(&objects(1))?;
    let vips: Vec<SocketAddr> =
        Family::BOTH.into_iter().map(|family| rig.frontend("rolled", family, 80)).collect::<Result<_>>()?;
    let doors: Vec<SocketAddr> = rig
        .node
        .nodes()
        .iter()
        .flat_map(|node| Family::BOTH.map(|family| SocketAddr::new(address::node(node.number).of(family), DOOR)))
        .collect();
    let client = rig.pod("client")?;
    let places: [(&NetNs, &[SocketAddr]); 2] = [(client.net(), &vips), (rig.node.outside().place.net(), &doors)];
    let shared = Shared::default();
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let shared = &shared;
        let mut workers = Vec::new();
        for turn in 0..THREADS {
            let (net, targets) = places[turn % places.len()];
            let share = NEW_A_SECOND / THREADS as u32;
            workers.push(scope.spawn(move || net.run(|| hold(shared, targets, OPEN / THREADS))?));
            workers.push(scope.spawn(move || net.run(|| knock(shared, targets, share))?));
        }
        let result = rig
            .eventually("all connections are open", || {
                ensure!(shared.opened.load(Ordering::SeqCst) >= OPEN as u64 * 2, "not yet");
                Ok(())
            })
            .and_then(|()| replace(rig, shared));
        shared.stop.store(true, Ordering::SeqCst);
        let mut wrong = Vec::new();
        for worker in workers {
            wrong.extend(worker.join().map_err(|_| anyhow!("a client panicked"))?.err());
        }
        if !wrong.is_empty() {
            let lines: Vec<String> = wrong.iter().map(|error| format!("{error:#}")).collect();
            bail!("{} of {} clients noticed: {}", wrong.len(), THREADS * 2, lines.join("; "));
        }
        result
    })?;
    let seconds = started.elapsed().as_secs();
    let (opened, asked) = (shared.opened.load(Ordering::SeqCst), shared.asked.load(Ordering::SeqCst));
    println!("  {opened} connections were opened in {seconds} s, and open ones were used {asked} times");
    // A machine that is far too slow for the load would have proved nothing.
    ensure!(opened > u64::from(NEW_A_SECOND) * seconds / 2, "only {opened} connections were opened in {seconds} s");
    Ok(())
}
