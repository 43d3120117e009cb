//! The agent's node changes under it: uplinks come, go, are renamed and get other addresses, and programs follow.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use netlb_common::Reason;
use netlb_testnode::PodNetwork;
use netlb_testnode::address::Family;
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;
use netlb_testnode::process::Stop;
use netlb_testnode::wire::Transport::{Tcp, Udp};
use netlb_tests::harness::{self, Trial};
use netlb_tests::kernel_objects;
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets;
use netlb_tests::traffic::WORLD;
use serde_json::{Value, json};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const STYLE: Style =
    Style { pods: PodNetwork::Bridge, delivery: "auto", accel: "none", bridge_netfilter: false, tx_checksum: true };

/// What is asked of a rig.
type Check = fn(&Rig) -> Result<()>;

fn main() -> ExitCode {
    let rig = std::rc::Rc::new(std::cell::LazyCell::new(|| {
        Rig::start_with(STYLE, ACTOR, WORLD, &["--pod-interfaces", "veth*"])
    }));
    let trials: [(&str, Check); 10] = [
        ("the node's uplink is found, and the pods' bridge is none", found),
        ("an uplink comes, with a second one, and goes", comes_and_goes),
        ("it changes address and MTU", changes),
        ("it is renamed, and keeps its programs", renamed),
        ("it becomes the port of a bridge, which takes its place", becomes_a_port),
        ("programs that somebody took off it come back", taken_off),
        ("the node's addresses follow its devices", node_addresses),
        ("a client whose device has no programs gets a backend where its packets would leave", slipped),
        ("a connection that begins while its pod's device has no programs is answered", slipped_once),
        ("without free source ports it reserves some, and cleanup gives them back", reserved_ports),
    ];
    let trials = trials.map(|(name, check)| {
        let rig = std::rc::Rc::clone(&rig);
        Trial::new(name, move || {
            let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
            check(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
        })
    });
    harness::run(need(&[Need::Root, Need::Btf]), trials.into())
}

/// Runs `ip` with these arguments in the node's network namespace.
fn ip(rig: &Rig, arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    let output = rig.node.node(1)?.place.output("ip", command, b"", &Stop::default())?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The row of a device in the agent's status.
fn row(rig: &Rig, name: &str) -> Result<Value> {
    let status = rig.agent.status()?.context("no status")?;
    let rows = status["uplinks"].as_array().context("no uplinks in the status")?;
    rows.iter().find(|row| row["name"] == name).cloned().with_context(|| format!("no {name} in {rows:?}"))
}

/// Waits until a device is an uplink with programs on it.
fn wait_uplink(rig: &Rig, name: &str) -> Result<()> {
    rig.eventually(&format!("{name} is an uplink"), || {
        let row = row(rig, name)?;
        ensure!(row["is_uplink"] == true && row["attached"] == true, "{row}");
        ensure_programs(rig, name, 1)
    })
}

/// Waits until a device is none, for a reason with this word, and has no programs.
fn wait_none(rig: &Rig, name: &str, word: &str) -> Result<()> {
    rig.eventually(&format!("{name} is no uplink"), || {
        let row = row(rig, name)?;
        ensure!(row["is_uplink"] == false && row["attached"] == false, "{row}");
        ensure!(row["why"].as_str().is_some_and(|why| why.contains(word)), "{row}");
        ensure_programs(rig, name, 0)
    })
}

fn ensure_programs(rig: &Rig, name: &str, count: usize) -> Result<()> {
    let programs = kernel_objects::on_device(rig.node.node(1)?, name)?;
    ensure!(programs.iter().all(|list| list.len() == count), "programs on {name}: {programs:?}, not {count} a side");
    Ok(())
}

fn found(rig: &Rig) -> Result<()> {
    wait_uplink(rig, "eth0")?;
    let eth0 = row(rig, "eth0")?;
    ensure!(eth0["why"] == "carries a default route", "{eth0}");
    let own = netlb_testnode::address::node(1);
    ensure!(eth0["addrs"] == json!([own.v4.to_string(), own.v6.to_string()]), "{eth0}");
    wait_none(rig, "cni0", "pods' devices are its ports")?;
    wait_none(rig, "lo", "loopback")
}

/// Makes `up0`, a device to a place where nobody answers.
fn make(rig: &Rig) -> Result<()> {
    ip(rig, "link add up0 type veth peer name up1")?;
    ip(rig, "link set up0 up")?;
    ip(rig, "link set up1 up")
}

fn remove(rig: &Rig, name: &str) -> Result<()> {
    ip(rig, &format!("link del {name}"))
}

fn comes_and_goes(rig: &Rig) -> Result<()> {
    make(rig)?;
    wait_none(rig, "up0", "no address of its own")?;
    ip(rig, "addr add 10.77.0.2/24 dev up0")?;
    wait_uplink(rig, "up0")?;
    ip(rig, "addr del 10.77.0.2/24 dev up0")?;
    wait_none(rig, "up0", "no address of its own")?;
    ip(rig, "route add 10.78.0.0/24 via inet 10.77.0.1 dev up0 onlink")?;
    wait_uplink(rig, "up0")?;
    ip(rig, "route del 10.78.0.0/24 dev up0")?;
    wait_none(rig, "up0", "no address of its own")?;
    ip(rig, "addr add 10.77.0.2/24 dev up0")?;
    wait_uplink(rig, "up0")?;
    let index = row(rig, "up0")?["ifindex"].as_u64().context("no index")?;
    remove(rig, "up0")?;
    rig.eventually("nothing is left of up0", || {
        ensure!(row(rig, "up0").is_err(), "it is in the status");
        let pins = kernel_objects::pins(rig.node.node(1)?, netlb_testnode::agent::PIN_PATH.as_ref())?;
        let left: Vec<_> = pins.keys().filter(|pin| pin.to_string_lossy().ends_with(&format!("-{index}"))).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    wait_uplink(rig, "eth0")
}

fn changes(rig: &Rig) -> Result<()> {
    make(rig)?;
    ip(rig, "addr add 10.77.0.2/24 dev up0")?;
    wait_uplink(rig, "up0")?;
    ip(rig, "link set up0 mtu 1400")?;
    ip(rig, "addr add 10.77.0.3/24 dev up0")?;
    ip(rig, "addr add fd00:77::2/64 dev up0 nodad")?;
    let wait = |addrs: Value| {
        rig.eventually("the new address is told", || {
            let row = row(rig, "up0")?;
            ensure!(row["addrs"] == addrs && row["mtu"] == 1400, "{row}");
            Ok(())
        })
    };
    wait(json!(["10.77.0.2", "fd00:77::2"]))?;
    ip(rig, "addr del 10.77.0.2/24 dev up0")?;
    ip(rig, "addr replace 10.77.0.3/24 dev up0")?;
    wait(json!(["10.77.0.3", "fd00:77::2"]))?;
    remove(rig, "up0")
}

fn renamed(rig: &Rig) -> Result<()> {
    make(rig)?;
    ip(rig, "addr add 10.77.0.2/24 dev up0")?;
    wait_uplink(rig, "up0")?;
    let before = kernel_objects::on_device(rig.node.node(1)?, "up0")?;
    ip(rig, "link set up0 down")?;
    ip(rig, "link set up0 name wan0")?;
    ip(rig, "link set wan0 up")?;
    wait_uplink(rig, "wan0")?;
    let after = kernel_objects::on_device(rig.node.node(1)?, "wan0")?;
    ensure!(before == after, "the programs were {before:?} and are {after:?}");
    remove(rig, "wan0")
}

fn becomes_a_port(rig: &Rig) -> Result<()> {
    make(rig)?;
    ip(rig, "addr add 10.77.0.2/24 dev up0")?;
    wait_uplink(rig, "up0")?;
    ip(rig, "link add wide0 type bridge")?;
    ip(rig, "link set wide0 up")?;
    ip(rig, "addr add 10.77.1.2/24 dev wide0")?;
    wait_none(rig, "wide0", "without ports")?;
    ip(rig, "link set up0 master wide0")?;
    wait_uplink(rig, "wide0")?;
    wait_none(rig, "up0", "a port of wide0")?;
    remove(rig, "wide0")?;
    wait_uplink(rig, "up0")?;
    remove(rig, "up0")
}

fn taken_off(rig: &Rig) -> Result<()> {
    take_off(rig, "eth0", ["from_outside", "to_outside"])?;
    wait_back(rig, "eth0", ["from_outside", "to_outside"])
}

/// Takes the programs off a device, as somebody with a broom would; the agent may be quick to put them back.
fn take_off(rig: &Rig, device: &str, programs: [&str; 2]) -> Result<()> {
    for program in programs {
        let pin = pin(rig, device, program)?;
        rig.node.node(1)?.mount.run(|| std::fs::remove_file(&pin))?.with_context(|| format!("cannot remove {pin}"))?;
    }
    Ok(())
}

/// The pin of a program's link to a device.
fn pin(rig: &Rig, device: &str, program: &str) -> Result<String> {
    let index = Links::open(rig.node.node(1)?.net())?.index(device)?;
    Ok(format!("{}/links/{program}-{index}", netlb_testnode::agent::PIN_PATH))
}

/// Waits until programs that were taken off are back: their links have pins again. That a program is there says little, since the kernel takes its time
/// to remove a link.
fn wait_back(rig: &Rig, device: &str, programs: [&str; 2]) -> Result<()> {
    rig.eventually("the programs are back", || {
        for program in programs {
            let pin = pin(rig, device, program)?;
            rig.node.node(1)?.mount.run(|| std::fs::metadata(&pin))?.with_context(|| format!("no {pin}"))?;
        }
        ensure_programs(rig, device, 1)
    })
}

/// A client behind a veth of the node that the agent takes for no pod's: no route but the node's default one leads to a Service.
fn slipped(rig: &Rig) -> Result<()> {
    let guest = NetNs::create()?;
    let inside = |arguments: &str| {
        let output = guest.run(|| Command::new("ip").args(arguments.split(' ')).output())??;
        ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let namespace = format!("/proc/{}/fd/{}", std::process::id(), guest.descriptor());
    ip(rig, "link add odd0 address 02:00:00:00:dd:00 type veth peer name odd1 address 02:00:00:00:dd:01")?;
    ip(rig, &format!("link set odd1 netns {namespace}"))?;
    ip(rig, "link set odd0 up")?;
    inside("link set odd1 up")?;
    for (address, gateway) in [("10.99.9.2/32", "169.254.1.1"), ("fd00:99:9::2/128", "fe80::1")] {
        let flag = if address.contains(':') { " nodad" } else { "" };
        inside(&format!("addr add {address} dev odd1{flag}"))?;
        inside(&format!("neigh add {gateway} lladdr 02:00:00:00:dd:00 nud permanent dev odd1"))?;
        inside(&format!("route add default via {gateway} dev odd1 onlink"))?;
        let bare = address.split('/').next().unwrap_or(address);
        ip(rig, &format!("neigh add {bare} lladdr 02:00:00:00:dd:01 nud permanent dev odd0"))?;
        ip(rig, &format!("route add {address} dev odd0"))?;
    }
    wait_none(rig, "odd0", "no address of its own")?;
    for family in Family::BOTH {
        let vip = rig.frontend("dns", family, 53)?;
        let ask = || guest.run(|| sockets::ask(Udp, vip, "who?"))?;
        let (answer, slipped) = rig.growth(Reason::SLIPPED, ask).with_context(|| format!("asking {vip}"))?;
        ensure!(slipped == 1, "{slipped} flows are counted as slipped, of one");
        ensure!(rig.backends("dns", family, 5353).contains(&answer.server), "{answer} is none of dns's");
        // What was about to leave by the uplink has the node's address.
        let node = netlb_testnode::address::node(1).of(family);
        ensure!(answer.client.ip() == node, "the pod saw {}, not the node {node}", answer.client);
        let refused = guest.run(|| {
            sockets::connect_within(sockets::SILENCE, Tcp, None, rig.frontend("empty", family, 80)?).map(drop)
        })?;
        ensure!(refused.is_err(), "a Service without endpoints answered");
    }
    remove(rig, "odd0")
}

/// A pod whose device has no programs while its connection begins, and has them soon after.
fn slipped_once(rig: &Rig) -> Result<()> {
    let pod = rig.pod("client")?;
    let device = pod.device().context("a pod of the node has a device")?;
    let programs = ["from_pod", "to_pod"];
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 80)?;
        // The agent puts its programs back within a second: it may be faster than the connection.
        rig.eventually("a connection slips", || {
            take_off(rig, device, programs)?;
            let ask = || rig.inside("client", || sockets::ask(Tcp, vip, "who?"));
            let (answer, slipped) = rig.growth(Reason::SLIPPED, ask)?;
            ensure!(rig.backends("web", family, 8080).contains(&answer.server), "{answer} is none of web's");
            wait_back(rig, device, programs)?;
            let (again, none) = rig.growth(Reason::SLIPPED, ask)?;
            ensure!(
                again.client.ip() == pod.addresses().of(family) && none == 0,
                "{again} with programs; {none} slipped"
            );
            ensure!(slipped == 1, "{slipped} flows are counted as slipped, of one");
            Ok(())
        })?;
    }
    Ok(())
}

fn node_addresses(rig: &Rig) -> Result<()> {
    let wait = |what: &str, primary: Value| {
        rig.eventually(what, || {
            let status = rig.agent.status()?.context("no status")?;
            ensure!(status["node_addresses"] == primary, "{}", status["node_addresses"]);
            // Nothing else was asked for.
            let mut served: Vec<_> = status["node_port_addresses"].as_array().context("a list")?.iter().collect();
            served.sort_by_key(|ip| ip.as_str().is_some_and(|text| text.contains(':')));
            ensure!(json!(served) == primary, "{served:?} serve NodePorts");
            Ok(())
        })
    };
    let own = netlb_testnode::address::node(1);
    let before = json!([own.v4.to_string(), own.v6.to_string()]);
    wait("the addresses of the Node object", before.clone())?;
    ip(rig, "addr add 10.88.0.77/24 dev eth0")?;
    ip(rig, &format!("addr del {}/24 dev eth0", own.v4))?;
    wait("the address that took its place", json!(["10.88.0.77", own.v6.to_string()]))?;
    ip(rig, &format!("addr add {}/24 dev eth0", own.v4))?;
    wait("the Node object's, which is back", before)
}

/// Reads a file of /proc/sys in the node's network namespace.
fn setting(rig: &Rig, name: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    let text = rig.node.node(1)?.net().run(|| std::fs::read_to_string(&path))?.with_context(|| path.clone())?;
    Ok(text.trim().to_owned())
}

fn set(rig: &Rig, name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    rig.node.node(1)?.net().run(|| std::fs::write(&path, value))?.with_context(|| path.clone())
}

/// The host's own ports are tuned as guides advise: nothing is left for masquerade but what netlb reserves.
fn reserved_ports(rig: &Rig) -> Result<()> {
    let ports = |rig: &Rig| -> Result<String> {
        let status = rig.agent.status()?.context("no status")?;
        Ok(status["snat_ports"].as_str().context("no ports")?.to_owned())
    };
    ensure!(ports(rig)? == "1024-29999", "{} without tuning", ports(rig)?);
    set(rig, "ip_local_reserved_ports", "8472,62000-62010")?;
    set(rig, "ip_local_port_range", "1024 65535")?;
    for _ in 0..2 {
        rig.agent.kill9()?;
        rig.agent.restart()?;
        rig.settle()?;
        ensure!(ports(rig)? == "61000-65535", "{} is chosen", ports(rig)?);
        let reserved = setting(rig, "ip_local_reserved_ports")?;
        ensure!(reserved == "8472,30000-32767,61000-65535", "{reserved} is reserved");
        let status = rig.agent.status()?.context("no status")?;
        ensure!(status["notes"].to_string().contains("30000-32767,61000-65535 are reserved in"), "{}", status["notes"]);
        let config = rig.agent.netlb(&["dump", "--config-only"])?;
        ensure!(config.contains("config snat=61000+4536"), "{config}");
    }
    rig.agent.terminate()?;
    for _ in 0..2 {
        rig.agent.netlb(&["cleanup"])?;
        let reserved = setting(rig, "ip_local_reserved_ports")?;
        ensure!(reserved == "8472,62000-62010", "cleanup left {reserved}");
    }
    Ok(())
}
