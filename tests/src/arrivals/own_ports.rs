//! The node's own sockets on ports that masqueraded flows have: both are answered.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use netlb_common::Reason;
use netlb_testnode::address::{self, Family};
use netlb_testnode::wire::{
    Answer,
    Transport::{self, Tcp, Udp},
};

use super::{door, outside};
use crate::rig::Rig;
use crate::sockets;

const DOORS: [(Transport, u16); 2] = [(Tcp, 30_140), (Udp, 30_141)];

const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shared, labels: {app: shared}}
spec:
  nodeName: node2
  containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: shared}
spec:
  type: NodePort
  selector: {app: shared}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30140}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353, nodePort: 30141}
";

/// A connection, or a connected socket.
enum Line {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Line {
    fn open(transport: Transport, from: Option<u16>, to: SocketAddr) -> Result<Self> {
        match transport {
            Udp => sockets::udp(from, to).map(Line::Datagrams),
            Tcp | Transport::Sctp => sockets::tcp(from, to).map(Line::Stream),
        }
    }

    fn ask(&self, line: &str) -> Result<Answer> {
        match self {
            Line::Stream(stream) => sockets::ask_on(stream, line),
            Line::Datagrams(socket) => sockets::ask_by(socket, line),
        }
        .with_context(|| format!("the {line} request"))
    }
}

pub(super) fn shared(rig: &Rig) -> Result<()> {
    rig.apply(OBJECTS)?;
    for (transport, port) in DOORS {
        for family in Family::BOTH {
            share(rig, transport, door(family, port))
                .with_context(|| format!("over {} {}", family.word(), transport.word()))?;
        }
    }
    Ok(())
}

fn share(rig: &Rig, transport: Transport, door: SocketAddr) -> Result<()> {
    let own = address::node(1).of(Family::of(door.ip()));
    let visitor = outside(rig, || Line::open(transport, None, door))?;
    let first = visitor.ask("first")?;
    let (wanted, backend) = (first.client, first.server);
    ensure!(wanted.ip() == own, "the pod saw {wanted}: this flow is not masqueraded");
    let node = rig.node.node(1)?.place.net();
    // A socket that shares its backend with no flow on its port keeps it.
    let free = node.run(|| Line::open(transport, None, backend))??;
    let (free, moved) = rig.growth(Reason::PORT_MOVED, || free.ask("free"))?;
    ensure!(moved == 0 && free.client.ip() == own, "the pod saw {}, {moved} ports were moved", free.client);

    let (socket, moved) = rig.growth(Reason::PORT_MOVED, || {
        node.run(|| Line::open(transport, Some(wanted.port()), backend))?.context("from the masqueraded flow's port")
    })?;
    let (second, later) = rig.growth(Reason::PORT_MOVED, || socket.ask("second"))?;
    ensure!(moved + later == 1, "{} ports were moved", moved + later);
    let third = visitor.ask("third")?;
    let fourth = socket.ask("fourth")?;
    ensure!(third.client == wanted && fourth.client == second.client, "{third}, {fourth}");
    let seen = BTreeSet::from([wanted, free.client, second.client]);
    ensure!(seen.len() == 3 && second.client.ip() == own, "the pod saw {seen:?}");

    // A closed flow's entries stand for a while: its answers are still taken for the client's.
    drop(visitor);
    let fifth = socket.ask("fifth")?;
    ensure!(fifth.client == second.client, "{fifth}");
    Ok(())
}
