//! Sockets of the node itself: connect() and sendto() are translated, and their owner sees nothing of it.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use netlb_common::Reason;
use netlb_testnode::PodNetwork;
use netlb_testnode::address::{self, Family};
use netlb_testnode::cgroup;
use netlb_testnode::wire::Answer;
use netlb_testnode::wire::Transport::{self, Tcp, Udp};
use netlb_tests::harness::{self, Trial};
use netlb_tests::kernel_objects::{SOCKET_HOOKS, on_cgroup};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets::{errno, expect_errno};
use netlb_tests::traffic::WORLD;
use nix::errno::Errno;

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const STYLE: Style =
    Style { pods: PodNetwork::Bridge, delivery: "auto", accel: "none", bridge_netfilter: true, tx_checksum: true };

type Check = (&'static str, fn(&Rig) -> Result<()>);

const NODE: &[Check] = &[
    ("a connection shows the VIP as its peer", connected),
    ("a connected UDP socket shows the VIP as its peer", connected_udp),
    ("answers to an unconnected UDP socket come from the VIP", unconnected),
    ("one unconnected socket talks to several VIPs", several_vips),
    ("an IPv6 socket reaches IPv4 VIPs as ::ffff:VIP", mapped),
    ("connect() and sendto() to nobody are refused", refused),
    ("an address of the Service network that nobody owns is unreachable", unallocated),
    ("addresses that are no Service's are left alone", foreign),
    ("session affinity holds for the node", affinity),
    ("a connected UDP socket ends with its backend, and others do not", destroyed),
    ("an unconnected UDP socket follows its Service", reselected),
    ("a connection outlives its backend's time in the Service", outlives),
    ("pods' sockets are left alone", pods_untouched),
    ("hooks are on the node's cgroup only", own_cgroup_only),
];

const PODS: &[Check] = &[
    ("--accel socket: pods' sockets are translated too", pods_translated),
    ("--accel socket: a pod reaches itself through its Service", pods_hairpin),
    ("--accel socket: pods are refused at once", pods_refused),
];

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (accel, checks) in [("none", NODE), ("socket", PODS)] {
        let rig = Rc::new(LazyCell::new(move || Rig::start(Style { accel, ..STYLE }, ACTOR, WORLD)));
        for (name, check) in checks {
            let rig = Rc::clone(&rig);
            trials.push(Trial::new(*name, move || {
                let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
                check(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
            }));
        }
    }
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

/// The pods of the `dns` or `web` workload, as the answers name them.
fn ensure_backend(rig: &Rig, answer: &Answer, workload: &str, family: Family, port: u16) -> Result<()> {
    let backends = rig.backends(workload, family, port);
    ensure!(backends.contains(&answer.server), "{answer}: not one of {backends:?}");
    ensure!(
        answer.client.ip() != rig.frontend(workload, family, port)?.ip(),
        "the pod saw a VIP as its client: {answer}"
    );
    Ok(())
}

fn connected(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 80)?;
        let (_, translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
            let socket = puppet.connected(Tcp, vip)?;
            ensure!(puppet.peer(socket)? == vip, "getpeername() shows {}, not {vip}", puppet.peer(socket)?);
            for turn in 0..3 {
                let answer = puppet.ask(socket, &format!("turn {turn}"))?;
                ensure_backend(rig, &answer, "web", family, 8080)?;
            }
            puppet.close(socket)
        })?;
        ensure!(translated == 1, "one connect() was counted {translated} times");
    }
    Ok(())
}

fn connected_udp(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let vip = rig.frontend("dns", family, 53)?;
        let (_, translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
            let socket = puppet.connected(Udp, vip)?;
            ensure!(puppet.peer(socket)? == vip, "getpeername() shows {}, not {vip}", puppet.peer(socket)?);
            let mut seen = BTreeSet::new();
            for turn in 0..5 {
                let line = format!("turn {turn}");
                puppet.send(socket, None, &line)?;
                let (from, text) = puppet.receive(socket)?;
                ensure!(from == Some(vip), "recvfrom() shows {from:?}, not {vip}");
                let answer: Answer = text.parse().map_err(anyhow::Error::msg)?;
                ensure!(answer.echo == line, "{answer}");
                ensure_backend(rig, &answer, "dns", family, 5353)?;
                seen.insert(answer.server);
            }
            ensure!(seen.len() == 1, "one connected socket talked to {seen:?}");
            puppet.close(socket)
        })?;
        ensure!(translated == 1, "one connect() was counted {translated} times");
    }
    Ok(())
}

/// sendto() and recvfrom() on a socket; the answer and where it seemed to come from.
fn exchange(
    puppet: &mut netlb_tests::puppet::Puppet,
    socket: netlb_tests::puppet::Socket,
    to: SocketAddr,
    line: &str,
) -> Result<(SocketAddr, Answer)> {
    puppet.send(socket, Some(to), line)?;
    let (from, text) = puppet.receive(socket)?;
    let answer: Answer = text.parse().map_err(anyhow::Error::msg)?;
    ensure!(answer.echo == line, "asked {line:?}, and was answered {answer}");
    Ok((from.context("an answer from nobody")?, answer))
}

fn unconnected(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let vip = rig.frontend("dns", family, 53)?;
        let socket = puppet.open(Udp, vip.is_ipv6())?;
        let (_, translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
            let mut seen = BTreeSet::new();
            for turn in 0..8 {
                let (from, answer) = exchange(&mut puppet, socket, vip, &format!("turn {turn}"))?;
                ensure!(from == vip, "recvfrom() shows {from}, not {vip}");
                ensure_backend(rig, &answer, "dns", family, 5353)?;
                seen.insert(answer.server);
            }
            ensure!(seen.len() == 1, "one socket's datagrams to one VIP went to {seen:?}");
            Ok(())
        })?;
        ensure!(translated == 1, "one flow of 8 datagrams was counted {translated} times");
    }
    Ok(())
}

fn several_vips(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let (dns, solo) = (rig.frontend("dns", family, 53)?, rig.frontend("solo", family, 53)?);
        let socket = puppet.open(Udp, dns.is_ipv6())?;
        for turn in 0..4 {
            for (vip, workload) in [(dns, "dns"), (solo, "solo")] {
                let (from, answer) = exchange(&mut puppet, socket, vip, &format!("turn {turn}"))?;
                ensure!(from == vip, "recvfrom() shows {from}, not {vip}");
                ensure_backend(rig, &answer, workload, family, 5353)?;
            }
        }
    }
    Ok(())
}

fn mapped(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    let as_v6 = |vip: SocketAddr| match vip.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), vip.port()),
        IpAddr::V6(_) => vip,
    };
    let web = as_v6(rig.frontend("web", Family::Ipv4, 80)?);
    let socket = puppet.connected(Tcp, web)?;
    ensure!(puppet.peer(socket)? == web, "getpeername() shows {}, not {web}", puppet.peer(socket)?);
    ensure_backend(rig, &puppet.ask(socket, "mapped")?, "web", Family::Ipv4, 8080)?;

    let dns = as_v6(rig.frontend("dns", Family::Ipv4, 53)?);
    let socket = puppet.connected(Udp, dns)?;
    ensure!(puppet.peer(socket)? == dns, "getpeername() shows {}, not {dns}", puppet.peer(socket)?);
    ensure_backend(rig, &puppet.ask(socket, "mapped")?, "dns", Family::Ipv4, 5353)?;

    let socket = puppet.open(Udp, true)?;
    let (from, answer) = exchange(&mut puppet, socket, dns, "mapped, unconnected")?;
    ensure!(from == dns, "recvfrom() shows {from}, not {dns}");
    ensure_backend(rig, &answer, "dns", Family::Ipv4, 5353)?;

    let empty = as_v6(rig.frontend("empty", Family::Ipv4, 80)?);
    expect_errno(puppet.connected(Tcp, empty), Errno::ECONNREFUSED, &format!("connect to {empty}"))
}

/// connect() and sendto() fail with ECONNREFUSED, each counted once under the reason.
fn refuses(rig: &Rig, transport: Transport, to: SocketAddr, reason: Reason) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    let what = format!("{} {to}", transport.word());
    let (_, refused) =
        rig.growth(reason, || expect_errno(puppet.connected(transport, to), Errno::ECONNREFUSED, &what))?;
    ensure!(refused == 1, "{what}: one connect() was counted {refused} times");
    if transport == Udp {
        let socket = puppet.open(Udp, to.is_ipv6())?;
        let (_, refused) =
            rig.growth(reason, || expect_errno(puppet.send(socket, Some(to), "hello"), Errno::ECONNREFUSED, &what))?;
        ensure!(refused == 1, "{what}: one sendto() was counted {refused} times");
    }
    Ok(())
}

fn refused(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        refuses(rig, Tcp, rig.frontend("empty", family, 80)?, Reason::SOCKET_NO_ENDPOINTS)?;
        refuses(rig, Udp, rig.frontend("empty", family, 53)?, Reason::SOCKET_NO_ENDPOINTS)?;
        refuses(rig, Tcp, rig.frontend("web", family, 82)?, Reason::SOCKET_UNDEFINED_PORT)?;
        refuses(rig, Udp, rig.frontend("web", family, 80)?, Reason::SOCKET_UNDEFINED_PORT)?;
    }
    Ok(())
}

fn unallocated(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for text in ["10.96.255.1:80", "[fd00:10:96::ff01]:80"] {
        let to: SocketAddr = text.parse()?;
        let (_, unreachable) = rig.growth(Reason::SOCKET_UNALLOCATED, || {
            expect_errno(puppet.connected(Tcp, to), Errno::EHOSTUNREACH, &format!("connect to {to}"))?;
            expect_errno(puppet.connected(Udp, to), Errno::EHOSTUNREACH, &format!("connect to {to}"))?;
            let socket = puppet.open(Udp, to.is_ipv6())?;
            expect_errno(puppet.send(socket, Some(to), "hello"), Errno::EHOSTUNREACH, &format!("sendto {to}"))
        })?;
        ensure!(unreachable == 3, "three calls were counted {unreachable} times");
    }
    Ok(())
}

fn foreign(rig: &Rig) -> Result<()> {
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let pod = SocketAddr::new(rig.pod("solo")?.addresses().of(family), 8080);
        let (answer, translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
            let socket = puppet.connected(Tcp, pod)?;
            ensure!(puppet.peer(socket)? == pod, "getpeername() shows {}, not {pod}", puppet.peer(socket)?);
            puppet.ask(socket, "straight")
        })?;
        ensure!(answer.server == pod && translated == 0, "{answer}; {translated} sockets were translated");
    }
    Ok(())
}

fn affinity(rig: &Rig) -> Result<()> {
    rig.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: node-sticky}
spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]}
",
    )?;
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        let vip = rig.frontend("node-sticky", family, 80)?;
        let mut seen = BTreeSet::new();
        for turn in 0..24 {
            let socket = puppet.connected(Tcp, vip)?;
            seen.insert(puppet.ask(socket, &format!("turn {turn}"))?.server);
            puppet.close(socket)?;
        }
        ensure!(seen.len() == 1, "the node's requests to {vip} were answered by {seen:?}");
    }
    Ok(())
}

/// A Deployment of one pod that serves TCP 8080 and UDP 5353, and its Service.
fn going(name: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: c, ports: [{{containerPort: 8080}}, {{containerPort: 5353, protocol: UDP}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 80, targetPort: 8080}}
  - {{name: dns, port: 53, protocol: UDP, targetPort: 5353}}
"
    )
}

fn destroyed(rig: &Rig) -> Result<()> {
    rig.apply(&going("going"))?;
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        rig.scale("going", 1)?;
        let vip = rig.frontend("going", family, 53)?;
        // Held: it goes on running when it is out of the source.
        let pod = rig.pod("going")?;
        let direct = SocketAddr::new(pod.addresses().of(family), 5353);
        let through = puppet.connected(Udp, vip)?;
        let straight = puppet.connected(Udp, direct)?;
        let other = puppet.connected(Udp, rig.frontend("dns", family, 53)?)?;
        for socket in [through, straight, other] {
            puppet.ask(socket, "before")?;
        }
        rig.scale("going", 0)?;

        let received = pod.counts()?.datagrams;
        // Who waits for an answer learns at once; the socket has no peer any more.
        expect_errno(puppet.receive(through), Errno::ECONNABORTED, "waiting on a socket whose backend is gone")?;
        expect_errno(puppet.send(through, None, "hello?"), Errno::EDESTADDRREQ, "sending by it")?;
        ensure!(pod.counts()?.datagrams == received, "a datagram reached the removed pod");
        expect_errno(puppet.connect(through, vip), Errno::ECONNREFUSED, "connect again, to nobody")?;
        puppet.ask(straight, "straight to the pod")?;
        puppet.ask(other, "to another Service")?;

        rig.scale("going", 1)?;
        puppet.connect(through, vip).context("connect again")?;
        let answer = puppet.ask(through, "served again")?;
        ensure_backend(rig, &answer, "going", family, 5353)?;
    }
    Ok(())
}

fn reselected(rig: &Rig) -> Result<()> {
    rig.apply(&going("moving"))?;
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        rig.scale("moving", 1)?;
        let vip = rig.frontend("moving", family, 53)?;
        let pod = rig.pod("moving")?;
        let socket = puppet.open(Udp, vip.is_ipv6())?;
        exchange(&mut puppet, socket, vip, "before")?;
        rig.scale("moving", 0)?;
        let received = pod.counts()?.datagrams;
        expect_errno(
            puppet.send(socket, Some(vip), "to nobody"),
            Errno::ECONNREFUSED,
            "sendto() to a Service without pods",
        )?;
        ensure!(pod.counts()?.datagrams == received, "a datagram reached the removed pod");
        rig.scale("moving", 1)?;
        let (from, answer) = exchange(&mut puppet, socket, vip, "after")?;
        ensure!(from == vip, "recvfrom() shows {from}, not {vip}");
        ensure_backend(rig, &answer, "moving", family, 5353)?;
    }
    Ok(())
}

fn outlives(rig: &Rig) -> Result<()> {
    rig.apply(&going("staying"))?;
    let mut puppet = rig.node_puppet()?;
    for family in Family::BOTH {
        rig.scale("staying", 1)?;
        let vip = rig.frontend("staying", family, 80)?;
        let pod = rig.pod("staying")?;
        let socket = puppet.connected(Tcp, vip)?;
        puppet.ask(socket, "before")?;
        rig.scale("staying", 0)?;
        let answer = puppet.ask(socket, "after")?;
        ensure!(answer.server.ip() == pod.addresses().of(family), "{answer}");
        ensure!(puppet.peer(socket)? == vip, "getpeername() shows {}, not {vip}", puppet.peer(socket)?);
        expect_errno(puppet.connected(Tcp, vip), Errno::ECONNREFUSED, "a new connection")?;
    }
    Ok(())
}

fn pods_untouched(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 80)?;
        let mut puppet = rig.pod_puppet("client")?;
        let ((), flows) = rig.growth(Reason::NEW_FLOW, || {
            let ((), translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
                let socket = puppet.connected(Tcp, vip)?;
                puppet.ask(socket, "from a pod").map(drop)
            })?;
            ensure!(translated == 0, "{translated} sockets of a pod were translated");
            Ok(())
        })?;
        ensure!(flows == 1, "one connection of a pod opened {flows} flows");
    }
    Ok(())
}

fn own_cgroup_only(rig: &Rig) -> Result<()> {
    let node = rig.node.node(1)?;
    let own = on_cgroup(node.cgroup_path())?;
    ensure!(own.keys().copied().eq(SOCKET_HOOKS), "attach types on the node's cgroup: {:?}", own.keys());
    ensure!(own.values().all(|programs| programs.len() == 1), "one program a hook, not {own:?}");
    let root = cgroup::mount_point()?;
    let mut others: Vec<&Path> =
        node.cgroup_path().ancestors().skip(1).take_while(|path| path.starts_with(&root)).collect();
    let outside = rig.node.outside().place.cgroup().context("the outside has a cgroup")?;
    others.push(outside.path());
    ensure!(others.contains(&root.as_path()), "{others:?} do not reach the root {}", root.display());
    for other in others {
        for (attach, programs) in on_cgroup(other)? {
            let mine = own.get(&attach).into_iter().flatten().any(|program| programs.contains(program));
            ensure!(!mine, "a hook of this node is on {} too", other.display());
        }
    }
    Ok(())
}

fn pods_translated(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let mut puppet = rig.pod_puppet("client")?;
        for (service, transport, port, target) in [("web", Tcp, 80, 8080), ("dns", Udp, 53, 5353)] {
            let vip = rig.frontend(service, family, port)?;
            let ((), flows) = rig.growth(Reason::NEW_FLOW, || {
                let ((), translated) = rig.growth(Reason::SOCKET_TRANSLATED, || {
                    let socket = puppet.connected(transport, vip)?;
                    ensure!(puppet.peer(socket)? == vip, "getpeername() shows {}, not {vip}", puppet.peer(socket)?);
                    let answer = puppet.ask(socket, "from a pod")?;
                    ensure!(answer.client.ip() == rig.pod("client")?.addresses().of(family), "{answer}");
                    ensure_backend(rig, &answer, service, family, target)
                })?;
                ensure!(translated == 1, "one connect() was counted {translated} times");
                Ok(())
            })?;
            ensure!(flows == 0, "a translated socket's packets opened {flows} flows");
        }
    }
    Ok(())
}

fn pods_hairpin(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let mut puppet = rig.pod_puppet("solo")?;
        let vip = rig.frontend("solo", family, 80)?;
        let socket = puppet.connected(Tcp, vip)?;
        let answer = puppet.ask(socket, "to myself")?;
        ensure!(answer.pod == "solo", "{answer}");
    }
    Ok(())
}

fn pods_refused(rig: &Rig) -> Result<()> {
    let mut puppet = rig.pod_puppet("client")?;
    for family in Family::BOTH {
        let empty = rig.frontend("empty", family, 80)?;
        expect_errno(puppet.connected(Tcp, empty), Errno::ECONNREFUSED, &format!("connect to {empty}"))?;
    }
    // Addresses outside of all Services stay reachable.
    let outside = SocketAddr::new(address::node(1).v4.into(), 9);
    let error = puppet.connected(Tcp, outside).err().context("nobody listens there")?;
    ensure!(errno(&error) == Some(Errno::ECONNREFUSED), "{error:#}");
    Ok(())
}
