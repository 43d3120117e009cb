//! Which backend gets the next flow: the schedulers and weights, as connections meet them.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use netlb_testnode::address::Family;
use netlb_testnode::wire::Transport::Tcp;

use crate::rig::Rig;
use crate::sockets;

/// A Service for the three `web` pods.
fn service(name: &str, scheduler: &str, weights: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, annotations: {{netlb.io/scheduler: {scheduler}, netlb.io/weights: '{weights}'}}}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
"
    )
}

/// `web`'s pods with these weights, in the order of their names.
fn weights(rig: &Rig, of: [u16; 3]) -> String {
    let pods = rig.node.pods_of("web").into_iter().zip(of);
    pods.map(|(pod, weight)| format!("{}={weight}", pod.key().name)).collect::<Vec<_>>().join(",")
}

/// How many of `count` connections, one after the other, each backend answered; most first.
fn shares(rig: &Rig, vip: SocketAddr, count: u32) -> Result<Vec<u32>> {
    let mut met: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for n in 0..count {
        let answer = rig.inside("client", || sockets::ask(Tcp, vip, &format!("request {n}")))?;
        *met.entry(answer.server).or_default() += 1;
    }
    let mut shares: Vec<u32> = met.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(*share));
    Ok(shares)
}

pub(super) fn in_turn(rig: &Rig) -> Result<()> {
    rig.apply(&service("turns", "rr", ""))?;
    for family in Family::BOTH {
        let shares = shares(rig, rig.frontend("turns", family, 80)?, 12)?;
        ensure!(shares == [4, 4, 4], "12 connections went to three backends as {shares:?}");
    }
    Ok(())
}

pub(super) fn by_weight(rig: &Rig) -> Result<()> {
    rig.apply(&service("weighted", "wrr", &weights(rig, [3, 1, 0])))?;
    for family in Family::BOTH {
        let shares = shares(rig, rig.frontend("weighted", family, 80)?, 12)?;
        ensure!(shares == [9, 3], "with weights of 3, 1 and 0, 12 connections were spread as {shares:?}");
    }
    Ok(())
}

pub(super) fn drained(rig: &Rig) -> Result<()> {
    rig.apply(&service("drained", "random", &weights(rig, [1, 0, 0])))?;
    for family in Family::BOTH {
        rig.apply(&service("drained", "random", &weights(rig, [1, 0, 0])))?;
        let vip = rig.frontend("drained", family, 80)?;
        let open = rig.inside("client", || sockets::tcp(None, vip))?;
        let before = sockets::ask_on(&open, "before")?.server;
        rig.apply(&service("drained", "random", &weights(rig, [0, 1, 1])))?;
        let after = sockets::ask_on(&open, "after")?.server;
        ensure!(before == after, "the open connection went from {before} to {after}");
        for n in 0..12 {
            let server = rig.inside("client", || sockets::ask(Tcp, vip, &format!("request {n}")))?.server;
            ensure!(server != before, "{before} has the weight 0 and got a new connection");
        }
    }
    Ok(())
}

pub(super) fn by_source(rig: &Rig) -> Result<()> {
    rig.apply(&service("hashed", "sh", ""))?;
    for family in Family::BOTH {
        // With a random choice, all alike by chance with a probability below 1e-10.
        let shares = shares(rig, rig.frontend("hashed", family, 80)?, 24)?;
        ensure!(shares == [24], "one client's 24 connections were spread as {shares:?}");
    }
    Ok(())
}

pub(super) fn least_connections(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let name = format!("least-{}", family.word());
        rig.apply(&service(&name, "lc", ""))?;
        let vip = rig.frontend(&name, family, 80)?;
        let open = || -> Result<(SocketAddr, TcpStream)> {
            let stream = rig.inside("client", || sockets::tcp(None, vip))?;
            Ok((sockets::ask_on(&stream, "hold")?.server, stream))
        };
        let mut held: BTreeMap<SocketAddr, Vec<TcpStream>> = BTreeMap::new();
        for _ in 0..9 {
            let (server, stream) = open()?;
            held.entry(server).or_default().push(stream);
        }
        let loads: Vec<usize> = held.values().map(Vec::len).collect();
        ensure!(loads == [3, 3, 3], "9 open connections are spread as {loads:?}");
        let (idle, over) = held.pop_first().context("there are three")?;
        for mut stream in over {
            // Both ends have said their last when this has been read.
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new()).context("the pod's end of a connection that is over")?;
        }
        for _ in 0..2 {
            let (server, stream) = open()?;
            ensure!(server == idle, "{server} got a connection while {idle} had fewer");
            held.entry(server).or_default().push(stream);
        }
    }
    Ok(())
}
