//! `netlb trace` over a running node: what it says is what packets then do, and asking changes nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use netlb_testnode::address::{self, Family};
use netlb_testnode::wire::Transport::{self, Tcp, Udp};
use netlb_testnode::{Client, PodKey, PodNetwork};
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets::{self, expect_errno};
use netlb_tests::traffic::WORLD;
use nix::errno::Errno;
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const AUTO: Style =
    Style { pods: PodNetwork::Bridge, delivery: "auto", accel: "none", bridge_netfilter: false, tx_checksum: true };
const STACK: Style = Style { pods: PodNetwork::Routed, delivery: "stack", ..AUTO };

/// A NodePort beside the shared world.
const NODE_PORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: door}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}
";

/// What is asked of a rig.
type Check = fn(&Rig) -> Result<()>;

fn main() -> ExitCode {
    let checks: [(&str, Check); 5] = [
        ("asking changes nothing in the maps", changes_nothing),
        ("the backends and refusals it names are those that clients then meet", as_traffic),
        ("it foretells the very backend of a connection, and finds the connection afterwards", foretells),
        ("a NodePort from outside", node_port),
        ("it is told in words, with names", in_words),
    ];
    let mut trials = Vec::new();
    // A second node takes every other pod, and has an agent of its own; who is asked about stays on the first.
    let world = format!("{WORLD}---{NODE_PORT}")
        .replace("metadata: {name: client}\nspec: {", "metadata: {name: client}\nspec: {nodeName: node1, ")
        .replace("labels: {app: solo}}\nspec: {", "labels: {app: solo}}\nspec: {nodeName: node1, ");
    for (style, nodes) in [(AUTO, 1), (STACK, 1), (AUTO, 2)] {
        let world = world.clone();
        let start = move || Rig::start_nodes(style, nodes, ACTOR, &world);
        let rig = std::rc::Rc::new(std::cell::LazyCell::new(start));
        for (name, check) in checks {
            let rig = std::rc::Rc::clone(&rig);
            trials.push(Trial::new(format!("{}, {nodes} nodes: {name}", style.name()), move || {
                let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
                check(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
            }));
        }
    }
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

fn trace(rig: &Rig, arguments: &[&str]) -> Result<Value> {
    let text = rig.agent.netlb(&[&["trace", "-o", "json"], arguments].concat())?;
    serde_json::from_str(&text).with_context(|| format!("netlb trace {arguments:?} printed {text}"))
}

/// Frontends with the backends that must answer there; none: refused.
fn sample(rig: &Rig) -> Result<Vec<(Transport, SocketAddr, BTreeSet<SocketAddr>)>> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        for (service, transport, port, workload, target) in [
            ("web", Tcp, 80, "web", 8080),
            ("web", Tcp, 81, "web", 9090),
            ("dns", Udp, 53, "dns", 5353),
            ("solo", Tcp, 80, "solo", 8080),
            ("empty", Tcp, 80, "nobody", 0),
            ("web", Tcp, 82, "nobody", 0),
        ] {
            all.push((transport, rig.frontend(service, family, port)?, rig.backends(workload, family, target)));
        }
    }
    Ok(all)
}

/// Who asks, all of them on the first node.
fn clients(rig: &Rig) -> Result<Vec<&'static str>> {
    let mut clients = vec!["default/client", "solo", "node"];
    // The first of a Deployment's pods: a backend that asks its own Service.
    if rig.pod("web")?.node().number == 1 {
        clients.push("web");
    }
    Ok(clients)
}

/// How trace calls the end of a packet that reaches this backend.
fn end(rig: &Rig, backend: &Value) -> Result<&'static str> {
    let at: SocketAddr = backend.as_str().context("no backend")?.parse()?;
    let pods = rig.node.pods();
    let pod = pods.iter().find(|pod| pod.addresses().both().contains(&at.ip())).context("no pod's address")?;
    Ok(if pod.node().number == 1 { "pod" } else { "away" })
}

/// The name by which `--from` knows a client.
fn from(rig: &Rig, client: &str) -> Result<String> {
    if client == "node" {
        Ok(client.to_owned())
    } else {
        Ok(rig.pod(client.trim_start_matches("default/"))?.key().to_string())
    }
}

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Tcp => "tcp",
        Udp => "udp",
        Transport::Sctp => "sctp",
    }
}

fn addresses(value: &Value) -> Result<BTreeSet<SocketAddr>> {
    let list = value.as_array().context("no list of backends")?;
    list.iter().map(|at| Ok(at.as_str().context("no text")?.parse()?)).collect()
}

fn changes_nothing(rig: &Rig) -> Result<()> {
    // Something to find: a flow, a session's worth of counters.
    let vip = rig.frontend("web", Family::Ipv4, 80)?;
    let _stream = rig.inside("client", || sockets::tcp(None, vip))?;
    let before = rig.agent.netlb(&["dump"])?;
    ensure!(before.contains("conntrack "), "no flow in the dump: this would check little");
    for client in clients(rig)? {
        for (transport, vip, _) in sample(rig)? {
            trace(rig, &["--from", &from(rig, client)?, "--to", &vip.to_string(), "--protocol", protocol(transport)])?;
        }
    }
    trace(rig, &["--from", "outside", "--to", "node:30080"])?;
    let after = rig.agent.netlb(&["dump"])?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn as_traffic(rig: &Rig) -> Result<()> {
    for client in clients(rig)? {
        let mut said = Vec::new();
        for (transport, vip, wanted) in sample(rig)? {
            let told = trace(
                rig,
                &["--from", &from(rig, client)?, "--to", &vip.to_string(), "--protocol", protocol(transport)],
            )?;
            let backends = addresses(&told["result"]["backends"])?;
            ensure!(backends == wanted, "{client} to {vip}: {backends:?}, not {wanted:?}: {told:#}");
            let kind = if wanted.is_empty() { "refused" } else { end(rig, &told["result"]["backend"])? };
            ensure!(told["result"]["kind"] == kind, "{client} to {vip}: {told:#}");
            ensure!(told["answer"]["arrives"] == true || wanted.is_empty(), "{client} to {vip}: {told:#}");
            said.push((transport, vip, backends));
        }
        let client = match client {
            "node" => Client::Node(1),
            pod => Client::Pod(PodKey::parse(&from(rig, pod)?)),
        };
        rig.ask_all(&client, &said)?;
    }
    // What nobody owns is dropped.
    let told = trace(rig, &["--from", "client", "--to", "10.96.255.200:80"])?;
    ensure!(told["result"]["kind"] == "dropped" && told["result"]["reason"] == "unallocated", "{told:#}");
    let silence = rig.inside("client", || {
        sockets::connect_within(sockets::SILENCE, Tcp, None, "10.96.255.200:80".parse()?).map(drop)
    });
    expect_errno(silence, Errno::ETIMEDOUT, "an address that nobody owns")
}

fn foretells(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 80)?;
        let pod = rig.pod("client")?.addresses().of(family);
        for port in [41_001, 41_002, 41_003, 41_004, 41_005, 41_006] {
            let source = SocketAddr::new(pod, port).to_string();
            let told = trace(rig, &["--from", &source, "--to", &vip.to_string()])?;
            ensure!(told["result"]["chosen_by"] == "random", "{told:#}");
            let stream = rig.inside("client", || sockets::tcp(Some(port), vip))?;
            let answer = sockets::ask_on(&stream, "who?")?;
            ensure!(told["result"]["backend"] == answer.server.to_string(), "{answer} answered, not as in {told:#}");
            ensure!(told["result"]["kind"] == end(rig, &told["result"]["backend"])?, "{told:#}");
            ensure!(
                told["result"]["seen_as"] == answer.client.ip().to_string(),
                "{answer} was told, not as in {told:#}"
            );
            let known = trace(rig, &["--from", &source, "--to", &vip.to_string(), "--flags", "ack"])?;
            ensure!(known["result"]["chosen_by"] == "flow", "{known:#}");
            ensure!(known["result"]["backend"] == answer.server.to_string(), "{known:#}");
        }
    }
    Ok(())
}

fn node_port(rig: &Rig) -> Result<()> {
    let backends = |family| rig.backends("web", family, 8080);
    for family in Family::BOTH {
        let at = SocketAddr::new(address::node(1).of(family), 30080);
        let source: IpAddr = address::OUTSIDE.of(family);
        let told = trace(rig, &["--from", &source.to_string(), "--to", &at.to_string()])?;
        let end = end(rig, &told["result"]["backend"])?;
        ensure!(told["result"]["kind"] == end && told["answer"]["arrives"] == true, "{told:#}");
        ensure!(addresses(&told["result"]["backends"])? == backends(family), "{told:#}");
        // Only a backend of this node sees the client as it is.
        let seen_as = if end == "pod" { source } else { address::node(1).of(family) };
        ensure!(told["result"]["seen_as"] == seen_as.to_string(), "{told:#}");
        ensure!(told["result"]["masqueraded"] == (end == "away"), "{told:#}");
        rig.ask_all(&Client::Outside, &[(Tcp, at, backends(family))])?;
    }
    let told = trace(rig, &["--from", "outside", "--to", "node:30081"])?;
    ensure!(told["result"]["kind"] == "node", "a port that is no NodePort is the host's: {told:#}");
    Ok(())
}

fn in_words(rig: &Rig) -> Result<()> {
    let text = rig.agent.netlb(&["trace", "--from", "client", "--to", "solo:http"])?;
    let vip = rig.frontend("solo", Family::Ipv4, 80)?.to_string();
    let words = [
        "from_pod on ",
        "(default/client)",
        "default/solo",
        &vip,
        if rig.style == STACK { "into default/solo" } else { "delivered to default/solo" },
        "The answer comes back as from",
    ];
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty() && !text.contains('#'), "{missing:?} is missing, or an id stands in:\n{text}");
    let text = rig.agent.netlb(&["trace", "-6", "--from", "client", "--to", "empty:http"])?;
    ensure!(text.contains("refused with TCP RST (no_endpoints)") && text.contains("what to do: "), "{text}");
    let unknown = rig.agent.netlb(&["trace", "--from", "client", "--to", "nothing"]).err().context("it is known")?;
    ensure!(format!("{unknown:#}").contains("netlb service list"), "{unknown:#}");
    Ok(())
}
