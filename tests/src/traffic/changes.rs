//! Changes while traffic runs: when the agent reports one applied, it holds for every packet from then on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::Pod;
use netlb_testnode::address::Family;
use netlb_testnode::wire::Answer;
use netlb_testnode::wire::Transport::Tcp;
use nix::errno::Errno;

use crate::rig::Rig;
use crate::sockets;

fn deployment(name: &str, replicas: u32, port: &str) -> String {
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: c, ports: [{port}]}}]}}
"
    )
}

fn service(name: &str, app: &str, port: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {app}}}, ports: [{port}]}}\n"
    )
}

/// Sends numbered datagrams over one connected socket, all the time, and notes who answered which.
struct Sender {
    /// The number of the next datagram.
    next: AtomicU64,
    stop: AtomicBool,
}

impl Sender {
    /// Runs until stopped; returns the answers by number.
    fn run(&self, socket: &UdpSocket) -> Result<Vec<(u64, IpAddr)>> {
        socket.set_nonblocking(true)?;
        let mut answers = Vec::new();
        let mut buffer = [0; 2048];
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            // A refusal of an earlier datagram shows here or at receiving; it ends nothing.
            let sent = socket.send(number.to_string().as_bytes());
            ensure_refused_or_full(sent.map(drop))?;
            std::thread::sleep(Duration::from_micros(300));
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                        let answer: Answer = text.parse().map_err(anyhow::Error::msg)?;
                        answers.push((answer.echo.parse().context("an answer without a number")?, answer.server.ip()));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => ensure_refused_or_full(Err(error))?,
                }
            }
        }
        Ok(answers)
    }
}

fn ensure_refused_or_full(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.context("a UDP socket failed by something else than a refusal"),
    }
}

pub(super) fn udp_scale(rig: &Rig) -> Result<()> {
    let port = "{containerPort: 5353, protocol: UDP}";
    rig.apply(
        &(deployment("scaled", 3, port) + &service("scaled", "scaled", "{port: 53, protocol: UDP, targetPort: 5353}")),
    )?;
    for family in Family::BOTH {
        rig.scale("scaled", 3)?;
        let vip = rig.frontend("scaled", family, 53)?;
        // Held, so that the pods go on running, and counting, when they are out of the source.
        let old = rig.node.pods_of("scaled");
        let socket = rig.inside("client", || sockets::udp(None, vip))?;
        sockets::ask_by(&socket, "0").context("before the change")?;

        // All the time: while pods terminate, while they go, and when all are gone.
        let sender = Sender { next: AtomicU64::new(1), stop: AtomicBool::new(false) };
        let (answers, gone_at) = std::thread::scope(|scope| -> Result<_> {
            let worker = scope.spawn(|| sender.run(&socket));
            let change = || -> Result<u64> {
                rig.eventually("datagrams are sent", || {
                    ensure!(sender.next.load(Ordering::SeqCst) > 50, "too few so far");
                    Ok(())
                })?;
                rig.node.scale("scaled", 0)?;
                rig.node.settle()?;
                let gone_at = sender.next.load(Ordering::SeqCst);
                rig.eventually("datagrams are sent to nobody", || {
                    ensure!(sender.next.load(Ordering::SeqCst) > gone_at + 100, "too few so far");
                    Ok(())
                })?;
                Ok(gone_at)
            };
            let gone_at = change();
            sender.stop.store(true, Ordering::SeqCst);
            let answers = worker.join().map_err(|_| anyhow!("the sender panicked"))??;
            Ok((answers, gone_at?))
        })?;
        ensure!(!answers.is_empty(), "no datagram was answered before the change");
        let late: Vec<_> = answers.iter().filter(|(number, _)| *number > gone_at).collect();
        ensure!(late.is_empty(), "datagrams sent after the agent reported the pods gone were answered: {late:?}");
        socket.set_nonblocking(false)?;

        // Nobody is there: each datagram is refused, and none reaches a removed pod.
        let before = received(&old)?;
        for number in 0..100 {
            // A refusal may still be waiting from the datagram before.
            let result = sockets::ask_by(&socket, &format!("refused {number}"));
            sockets::expect_errno(result, Errno::ECONNREFUSED, "a datagram to a Service without pods")?;
        }
        ensure!(received(&old)? == before, "removed pods received {} datagrams", received(&old)? - before);

        rig.scale("scaled", 2)?;
        let new = rig.backends("scaled", family, 5353);
        ensure!(new.len() == 2, "two new pods, not {new:?}");
        // One refusal may still be waiting in the socket; then the same socket is served again.
        let answer = match sockets::ask_by(&socket, "served again") {
            Err(error) if sockets::errno(&error) == Some(Errno::ECONNREFUSED) => {
                sockets::ask_by(&socket, "served again")?
            }
            other => other?,
        };
        ensure!(new.contains(&answer.server), "{answer}, of none of {new:?}");
        for number in 0..50 {
            let answer = sockets::ask_by(&socket, &format!("kept {number}"))?;
            ensure!(new.contains(&answer.server), "{answer}, of none of {new:?}");
        }
        ensure!(received(&old)? == before, "removed pods received {} datagrams", received(&old)? - before);
    }
    Ok(())
}

/// Datagrams that these pods have received.
fn received(pods: &[Arc<Pod>]) -> Result<u64> {
    pods.iter().map(|pod| Ok(pod.counts()?.datagrams)).sum()
}

pub(super) fn draining(rig: &Rig) -> Result<()> {
    let port = "{containerPort: 8080}";
    rig.apply(&(deployment("leaver", 2, port) + &service("leaver", "leaver", "{port: 80, targetPort: 8080}")))?;
    for family in Family::BOTH {
        rig.scale("leaver", 2)?;
        let vip = rig.frontend("leaver", family, 80)?;
        let pods = rig.node.pods_of("leaver");
        let [staying, leaving] = pods.as_slice() else { bail!("two pods, not {}", pods.len()) };
        let (staying, leaving) = (staying.addresses().of(family), leaving.addresses().of(family));
        // Open connections until one is to the pod that will leave.
        let open =
            |_| rig.inside("client", || sockets::tcp(None, vip).and_then(|s| Ok((sockets::ask_on(&s, "hello")?, s))));
        let kept = (0..60)
            .map(open)
            .find(|result| result.as_ref().map_or(true, |(answer, _)| answer.server.ip() == leaving))
            .with_context(|| format!("none of 60 connections was to {leaving}"))??
            .1;

        let check = |state: &str| -> Result<()> {
            let answer = sockets::ask_on(&kept, state)
                .with_context(|| format!("over an open connection to a pod that is {state}"))?;
            ensure!(answer.server.ip() == leaving, "the connection moved to {}", answer.server);
            for _ in 0..20 {
                let answer = rig.inside("client", || sockets::ask(Tcp, vip, "new"))?;
                ensure!(answer.server.ip() == staying, "a new connection went to {}, which is {state}", answer.server);
            }
            let rows = rig.agent.netlb(&["backend", "list", "-o", "json"])?;
            let rows: Vec<serde_json::Value> = serde_json::from_str(&rows)?;
            let address = leaving.to_string();
            let found: BTreeSet<_> =
                rows.iter().filter(|row| row["address"] == address).map(|row| row["state"].to_string()).collect();
            ensure!(
                found == BTreeSet::from([format!("{state:?}")]),
                "`netlb backend list` calls {address} {found:?}, not {state}"
            );
            Ok(())
        };
        let revision = rig.node.scale("leaver", 1)?;
        rig.node.wait_applied(revision)?;
        check("draining")?;
        let revision = rig.node.remove_terminating()?;
        rig.node.wait_applied(revision)?;
        check("removed")?;
    }
    Ok(())
}

pub(super) fn switches(rig: &Rig) -> Result<()> {
    const SERVICES: usize = 20;
    const ROUNDS: usize = 8;
    const CLIENTS: usize = 4;
    let port = "{containerPort: 8080}";
    let all = |app: &str| -> String {
        (0..SERVICES).map(|n| service(&format!("switch-{n}"), app, "{port: 80, targetPort: 8080}")).collect()
    };
    rig.apply(&(deployment("left", 1, port) + &deployment("right", 1, port) + &all("left")))?;
    let vips: Vec<SocketAddr> = (0..SERVICES)
        .flat_map(|n| Family::BOTH.map(|family| rig.frontend(&format!("switch-{n}"), family, 80)))
        .collect::<Result<_>>()?;
    let sides = |app: &str| -> BTreeSet<SocketAddr> {
        Family::BOTH.into_iter().flat_map(|family| rig.backends(app, family, 8080)).collect()
    };
    let (left, right) = (sides("left"), sides("right"));
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));

    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (vips, left, right, stop, asked) = (&vips, &left, &right, &stop, &asked);
                scope.spawn(move || {
                    rig.inside("client", || {
                        for vip in vips.iter().cycle().skip(client * 7) {
                            if stop.load(Ordering::SeqCst) {
                                break;
                            }
                            let answer = sockets::ask(Tcp, *vip, "old or new").context("while Services changed")?;
                            ensure!(left.contains(&answer.server) || right.contains(&answer.server), "{answer}");
                            asked.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let change = || -> Result<()> {
            for round in 0..ROUNDS {
                let (app, wanted) = if round % 2 == 0 { ("right", &right) } else { ("left", &left) };
                rig.apply(&all(app))?;
                // From here on it is the new one only.
                for vip in &vips {
                    let answer = rig.inside("client", || sockets::ask(Tcp, *vip, "new only"))?;
                    ensure!(wanted.contains(&answer.server), "{vip} after the change to {app}: {answer}");
                }
            }
            Ok(())
        };
        let changed = change();
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        changed
    })?;
    let asked = asked.load(Ordering::SeqCst);
    ensure!(asked > ROUNDS as u64 * 10, "only {asked} connections were made in {} rounds", ROUNDS);
    Ok(())
}
