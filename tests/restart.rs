//! The agent dies, is killed, comes back, is taken away: the datapath goes on, and nothing is left that should not be.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::address::Family;
use netlb_testnode::agent::PIN_PATH;
use netlb_testnode::wire::Transport::{Tcp, Udp};
use netlb_testnode::{Agent, AgentOptions, Client, PodKey, PodNetwork};
use netlb_tests::bulk;
use netlb_tests::harness::{self, Trial};
use netlb_tests::kernel_objects::{self, Pinned};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets::{self, SILENCE, expect_errno};
use netlb_tests::traffic::{WORLD, service_by_hand};
use nix::errno::Errno;
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const fn style(pods: PodNetwork, delivery: &'static str) -> Style {
    Style { pods, delivery, accel: "none", bridge_netfilter: false, tx_checksum: true }
}

const REDIRECT: Style = style(PodNetwork::Bridge, "redirect");
const STACK: Style = style(PodNetwork::Routed, "stack");
/// What makes an agent attach as on a kernel without TCX.
const CLSACT: &[&str] = &["--attach", "clsact"];

/// What is asked of a rig.
type Check = fn(&Rig) -> Result<()>;

fn main() -> ExitCode {
    let trials: [(&str, Style, &[&str], Check); 10] = [
        (
            "killed under load, redirect road: nothing breaks, and it comes back to the same maps",
            REDIRECT,
            &[],
            killed_under_load,
        ),
        (
            "killed under load, stack road: nothing breaks, and it comes back to the same maps",
            STACK,
            &[],
            killed_under_load,
        ),
        ("killed under load, by filters of clsact: nothing breaks", STACK, CLSACT, killed_under_load),
        (
            "clsact: filters of ours alone are attached, kept, replaced, put back and cleaned up",
            REDIRECT,
            CLSACT,
            clsact,
        ),
        ("restarted, it keeps maps and links and replaces programs", REDIRECT, &[], pins_survive),
        ("what changed while it was dead is programmed when it is back", STACK, &[], world_changed_meanwhile),
        ("started without a source it fails, and prunes nothing", REDIRECT, &[], no_source),
        ("20 crashes leave no more programs, links and maps than one start", REDIRECT, &[], crash_loop),
        ("cleanup removes everything, and twice is fine", STACK, &[], cleanup),
        ("detached, it fills the maps and attaches nothing", REDIRECT, &[], detached),
    ];
    let trials = trials.map(|(name, style, arguments, check)| {
        Trial::new(name, move || {
            let rig = Rig::start_with(style, ACTOR, WORLD, arguments).map_err(|error| format!("no rig: {error:#}"))?;
            check(&rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
        })
    });
    harness::run(need(&[Need::Root, Need::Btf]), trials.into())
}

fn client() -> Client {
    Client::Pod(PodKey::parse("client"))
}

/// Starts the agent again and waits until it has the source as it is now in effect.
fn start_again(rig: &Rig) -> Result<()> {
    rig.agent.restart()?;
    rig.settle()
}

/// The maps that follow from the source alone.
fn dump(rig: &Rig) -> Result<String> {
    rig.agent.netlb(&["dump", "--config-only"])
}

/// Connection after connection to one frontend, from a pod or from the node, each with a request, until stopped.
fn connection_loop(rig: &Rig, number: usize, stop: &AtomicBool, asked: &AtomicU64) -> Result<()> {
    let family = if number.is_multiple_of(2) { Family::Ipv4 } else { Family::Ipv6 };
    let (transport, service, port) = if number.is_multiple_of(5) { (Udp, "dns", 53) } else { (Tcp, "web", 80) };
    let vip = rig.frontend(service, family, port)?;
    let line = format!("loop {number}");
    if number.is_multiple_of(4) {
        let mut puppet = rig.node_puppet()?;
        while !stop.load(Ordering::SeqCst) {
            let socket = puppet.connected(transport, vip)?;
            puppet.ask(socket, &line)?;
            puppet.close(socket)?;
            asked.fetch_add(1, Ordering::SeqCst);
        }
        return Ok(());
    }
    let pod = if number.is_multiple_of(3) { "solo" } else { "client" };
    rig.inside(pod, || {
        while !stop.load(Ordering::SeqCst) {
            sockets::ask(transport, vip, &line)?;
            asked.fetch_add(1, Ordering::SeqCst);
            // 20 loops share two processors with all else.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

fn killed_under_load(rig: &Rig) -> Result<()> {
    const LOOPS: usize = 20;
    rig.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: bulk}\nspec: {containers: [{name: c}]}\n")?;
    let pod = rig.pod("bulk")?;
    let _server = bulk::Server::start(pod.net(), 7000)?;
    rig.apply(
        &(service_by_hand("bulk", pod.addresses().both(), 7000)
            + "---\n"
            + &service_by_hand("iperf", pod.addresses().both(), 5201)),
    )?;
    let mut iperf_server = Command::new("iperf3");
    iperf_server.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null());
    let iperf_server = pod.spawn(iperf_server).context("is iperf3 installed? `cargo xtask setup` does it")?;
    let before = dump(rig)?;

    let (stop, asked, moved) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let progress = |counter: &AtomicU64, more: u64, what: &str| {
        let from = counter.load(Ordering::SeqCst);
        rig.eventually(what, || {
            let done = counter.load(Ordering::SeqCst) - from;
            ensure!(done >= more, "{done} of {more}");
            Ok(())
        })
    };
    std::thread::scope(|scope| -> Result<()> {
        let (stop, asked, moved) = (&stop, &asked, &moved);
        let mut workers: Vec<_> = (0..LOOPS)
            .map(|number| {
                scope.spawn(move || connection_loop(rig, number, stop, asked).with_context(|| format!("loop {number}")))
            })
            .collect();
        // One connection a family that never ends, in both directions by turns.
        for family in Family::BOTH {
            let vip = rig.frontend("bulk", family, 80)?;
            workers.push(scope.spawn(move || {
                let stream = rig.inside("client", || sockets::tcp(None, vip))?;
                while !stop.load(Ordering::SeqCst) {
                    bulk::exchange(&stream, 300_000, 300_000).context("the connection that never ends")?;
                    moved.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }));
        }
        let run = || -> Result<()> {
            progress(asked, 200, "connections are made")?;
            let mut iperf = Command::new("iperf3");
            let vip = rig.frontend("iperf", Family::Ipv4, 80)?;
            iperf
                .args(["-J", "-t", "8", "-c", &vip.ip().to_string(), "-p", &vip.port().to_string()])
                .stdout(Stdio::piped());
            let mut iperf = rig.pod("client")?.spawn(iperf)?;

            rig.agent.kill9()?;
            progress(asked, 300, "connections are made while the agent is dead")?;
            progress(moved, 5, "bytes flow while the agent is dead")?;
            start_again(rig)?;
            progress(asked, 300, "connections are made when it is back")?;
            progress(moved, 5, "bytes flow when it is back")?;

            let mut report = String::new();
            let mut out = iperf.pipes().stdout.take().context("iperf3 has no output")?;
            std::io::Read::read_to_string(&mut out, &mut report)?;
            let report: Value = serde_json::from_str(&report).context("cannot understand iperf3")?;
            ensure!(report.get("error").is_none(), "iperf3: {}", report["error"]);
            let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
            ensure!(bits.is_some_and(|bits| bits > 0.0), "iperf3 moved nothing: {report}");
            Ok(())
        };
        let result = run();
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        result
    })?;
    drop(iperf_server);
    let after = dump(rig)?;
    ensure!(before == after, "the maps differ from those before:\n{}", difference(&before, &after));
    Ok(())
}

/// Lines that only one of two texts has.
fn difference(before: &str, after: &str) -> String {
    let missing =
        before.lines().filter(|line| !after.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let new = after.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    missing.chain(new).collect::<Vec<_>>().join("\n")
}

/// All pins, by path.
fn pins(rig: &Rig) -> Result<BTreeMap<PathBuf, Pinned>> {
    kernel_objects::pins(rig.node.node(1)?, Path::new(PIN_PATH))
}

/// Programs on every pod's device, on the uplink and on the cgroup: one each, or (without an agent's work) none.
fn ensure_attached(rig: &Rig, count: usize) -> Result<()> {
    let node = rig.node.node(1)?;
    let mut devices = 0;
    for pod in rig.node.pods() {
        if let Some(device) = pod.device() {
            let programs = kernel_objects::on_device(node, device)?;
            ensure!(
                programs.iter().all(|list| list.len() == count),
                "programs on {device} of {}: {programs:?}",
                pod.key()
            );
            devices += 1;
        }
    }
    ensure!(devices > 0, "there are no pod devices: this would check nothing");
    let uplink = kernel_objects::on_device(node, "eth0")?;
    ensure!(uplink.iter().all(|list| list.len() == count), "programs on the uplink: {uplink:?}");
    let hooks = kernel_objects::on_cgroup(node.cgroup_path())?;
    let wanted = if count == 0 { 0 } else { kernel_objects::SOCKET_HOOKS.len() };
    ensure!(hooks.len() == wanted && hooks.values().all(|list| list.len() == count), "socket hooks: {hooks:?}");
    Ok(())
}

fn pins_survive(rig: &Rig) -> Result<()> {
    let before = pins(rig)?;
    ensure_attached(rig, 1)?;
    rig.agent.kill9()?;
    ensure!(pins(rig)? == before, "pins changed with the agent's death");
    ensure_attached(rig, 1)?;
    start_again(rig)?;
    ensure_attached(rig, 1)?;
    let after = pins(rig)?;
    ensure!(before.keys().eq(after.keys()), "pins before: {:?}\nafter: {:?}", before.keys(), after.keys());
    let (mut maps, mut links) = (0, 0);
    for ((path, old), new) in before.iter().zip(after.values()) {
        match (old, new) {
            (Pinned::Map { id: old }, Pinned::Map { id: new }) => {
                ensure!(old == new, "the map {} was made anew", path.display());
                maps += 1;
            }
            (Pinned::Link { id: old, program: before }, Pinned::Link { id: new, program: after }) => {
                ensure!(old == new, "the link {} was made anew: packets went past it meanwhile", path.display());
                ensure!(before != after, "the link {} still runs the program of the agent before", path.display());
                links += 1;
            }
            (Pinned::Program { .. }, Pinned::Program { .. }) => {}
            (old, new) => bail!("{} was {old:?} and is {new:?}", path.display()),
        }
    }
    ensure!(maps >= 10 && links >= 2 * rig.node.pods().len(), "only {maps} maps and {links} links are pinned");
    Ok(())
}

fn world_changed_meanwhile(rig: &Rig) -> Result<()> {
    rig.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: old}
spec: {selector: {app: solo}, ports: [{port: 80, targetPort: 8080}]}
",
    )?;
    let old: Vec<SocketAddr> =
        Family::BOTH.iter().map(|family| rig.frontend("old", *family, 80)).collect::<Result<_>>()?;
    rig.agent.kill9()?;

    // Nobody tells the agent: it is dead.
    rig.node.apply("apiVersion: v1\nkind: Service\nmetadata: {name: new}\nspec: {selector: {app: dns}, ports: [{port: 80, targetPort: dns-tcp}]}\n")?;
    rig.node.delete("Service", "default", "old")?;
    rig.node.scale("web", 5)?;
    for vip in &old {
        rig.inside("client", || sockets::ask(Tcp, *vip, "nobody has told the datapath"))
            .context("while the agent is dead")?;
    }

    start_again(rig)?;
    for vip in &old {
        let result = rig.inside("client", || sockets::connect_within(SILENCE, Tcp, None, *vip));
        expect_errno(result, Errno::ETIMEDOUT, &format!("connect to {vip}, whose Service was deleted"))?;
    }
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        wanted.push((Tcp, rig.frontend("new", family, 80)?, rig.backends("dns", family, 5354)));
        let web = rig.backends("web", family, 8080);
        ensure!(web.len() == 5, "five pods, not {web:?}");
        wanted.push((Tcp, rig.frontend("web", family, 80)?, web));
    }
    rig.ask_all(&client(), &wanted)
}

fn no_source(rig: &Rig) -> Result<()> {
    let before = dump(rig)?;
    let source = rig.node.source_path();
    let away = source.with_extension("away");
    rig.agent.kill9()?;
    fs::rename(&source, &away)?;
    let result = rig.agent.restart().and_then(|()| rig.agent.wait_applied(1));
    fs::rename(&away, &source)?;
    let error = format!("{:#}", result.err().context("an agent without a source reported a revision applied")?);
    ensure!(error.contains(&source.display().to_string()), "the agent does not name its missing source:\n{error}");
    let now = dump(rig)?;
    ensure!(now == before, "an agent without a source changed the maps:\n{}", difference(&before, &now));
    everything_answers(rig)?;
    start_again(rig)?;
    let after = dump(rig)?;
    ensure!(after == before, "the maps differ from those before:\n{}", difference(&before, &after));
    Ok(())
}

fn everything_answers(rig: &Rig) -> Result<()> {
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        wanted.push((Tcp, rig.frontend("web", family, 80)?, rig.backends("web", family, 8080)));
        wanted.push((Udp, rig.frontend("dns", family, 53)?, rig.backends("dns", family, 5353)));
    }
    rig.ask_all(&client(), &wanted)?;
    rig.ask_all(&Client::Node(1), &wanted)
}

fn crash_loop(rig: &Rig) -> Result<()> {
    let (pins_before, dump_before) = (pins(rig)?, dump(rig)?);
    let ids = |pins: &BTreeMap<PathBuf, Pinned>| -> BTreeMap<PathBuf, u32> {
        let id = |pinned: &Pinned| match pinned {
            Pinned::Map { id } | Pinned::Link { id, .. } | Pinned::Program { id } => *id,
        };
        let kept = pins.iter().filter(|(_, pinned)| !matches!(pinned, Pinned::Program { .. }));
        kept.map(|(path, pinned)| (path.clone(), id(pinned))).collect()
    };
    // From "had no time for anything" to "was quite done".
    for crash in 0..20 {
        rig.agent.restart()?;
        std::thread::sleep(Duration::from_millis(15 * crash));
        rig.agent.kill9()?;
        for family in Family::BOTH {
            let vip = rig.frontend("web", family, 80)?;
            rig.inside("client", || sockets::ask(Tcp, vip, "still there?"))
                .with_context(|| format!("after crash {crash}"))?;
        }
    }
    start_again(rig)?;
    ensure_attached(rig, 1)?;
    let (pins_after, dump_after) = (pins(rig)?, dump(rig)?);
    ensure!(ids(&pins_before) == ids(&pins_after), "pins before: {pins_before:#?}\nafter: {pins_after:#?}");
    ensure!(dump_before == dump_after, "the maps differ from those before:\n{}", difference(&dump_before, &dump_after));
    everything_answers(rig)
}

fn cleanup(rig: &Rig) -> Result<()> {
    let vip = rig.frontend("web", Family::Ipv4, 80)?;
    rig.agent.kill9()?;
    let said = rig.agent.netlb(&["cleanup"])?;
    ensure!(!said.trim().is_empty(), "cleanup does not say what it removed");
    let left = pins(rig)?;
    ensure!(left.is_empty(), "pins are left: {:?}", left.keys());
    ensure_attached(rig, 0)?;
    rig.agent.netlb(&["cleanup"]).context("the second time")?;
    let result = rig.inside("client", || sockets::connect_within(SILENCE, Tcp, None, vip));
    ensure!(result.is_err(), "a VIP answers though nothing is attached");
    start_again(rig)?;
    everything_answers(rig)
}

fn detached(rig: &Rig) -> Result<()> {
    rig.agent.kill9()?;
    rig.agent.netlb(&["cleanup"])?;
    let node = rig.node.node(1)?;
    let options = AgentOptions { detached: true, ..AgentOptions::default() };
    let netlb = netlb_program()?;
    let folder = rig.node.folder().join("detached");
    fs::create_dir(&folder)?;
    let agent = Agent::start(node, &netlb, &rig.node.source_path(), &folder, options, rig.node.stop())?;
    agent.wait_applied(1)?;
    ensure_attached(rig, 0)?;
    let status = agent.status()?.context("no status")?;
    ensure!(status["mode"] == "detached", "the status does not say detached: {status}");
    let services: Vec<Value> = serde_json::from_str(&agent.netlb(&["service", "list", "-o", "json"])?)?;
    ensure!(!services.is_empty(), "the maps are empty");
    let vip = rig.frontend("web", Family::Ipv4, 80)?;
    let result = rig.inside("client", || sockets::connect_within(SILENCE, Tcp, None, vip));
    ensure!(result.is_err(), "a VIP answers though nothing is attached");
    Ok(())
}

/// Ids of netlb's filters' programs, by device and side; each must be alone of ours in its place, and no TCX program beside it.
fn filter_programs(rig: &Rig) -> Result<BTreeMap<(String, usize), u64>> {
    let node = rig.node.node(1)?;
    let pods = rig.node.pods();
    let devices = pods.iter().filter_map(|pod| pod.device()).chain(["eth0"]);
    let mut found = BTreeMap::new();
    for device in devices {
        if kernel_objects::has_tcx() {
            let programs = kernel_objects::on_device(node, device)?;
            ensure!(programs.iter().all(Vec::is_empty), "TCX programs on {device}: {programs:?}");
        }
        for (side, rows) in kernel_objects::filters(node, device)?.into_iter().enumerate() {
            let ours: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "bpf").collect();
            let [row] = ours.as_slice() else { bail!("filters on {device}: {rows:?}") };
            let name = row.pointer("/options/bpf_name").and_then(Value::as_str).unwrap_or_default();
            let role = if device == "eth0" { "outside" } else { "pod" };
            let wanted = format!("netlb:{}_{role}", ["from", "to"][side]);
            ensure!(name == wanted && row["pref"] == 1, "on {device} stands {row}, not {wanted}");
            let id = row.pointer("/options/prog/id").and_then(Value::as_u64).context("a filter without a program")?;
            found.insert((device.to_owned(), side), id);
        }
    }
    ensure!(found.len() > 2, "there are no pod devices: this would check nothing");
    Ok(found)
}

fn clsact(rig: &Rig) -> Result<()> {
    let node = rig.node.node(1)?;
    let pod = rig.pod("client")?;
    let device = pod.device().context("a pod without a device")?;
    // Somebody else's filter, that takes no packet.
    kernel_objects::tc(
        node,
        &format!("filter add dev {device} egress pref 7 protocol ip u32 match u32 1 0xffffffff flowid 1:1"),
    )?;
    let foreign = |device: &str| -> Result<bool> {
        let [_, egress] = kernel_objects::filters(node, device)?;
        Ok(egress.iter().any(|row| row["kind"] == "u32"))
    };
    let before = filter_programs(rig)?;
    everything_answers(rig)?;

    rig.agent.kill9()?;
    ensure!(filter_programs(rig)? == before, "filters changed with the agent's death");
    everything_answers(rig).context("while the agent is dead")?;
    start_again(rig)?;
    let after = filter_programs(rig)?;
    ensure!(before.keys().eq(after.keys()), "filters before: {before:?}\nafter: {after:?}");
    ensure!(
        before.iter().all(|(place, id)| after[place] != *id),
        "a filter still runs the program of the agent before"
    );
    ensure!(foreign(device)?, "the restart took somebody else's filter away");
    everything_answers(rig)?;

    kernel_objects::tc(node, "qdisc del dev eth0 clsact")?;
    kernel_objects::tc(node, &format!("filter del dev {device} ingress"))?;
    rig.eventually("filters that were taken off are back", || filter_programs(rig).map(drop))?;
    ensure!(foreign(device)?, "somebody else's filter is gone");

    rig.agent.kill9()?;
    let said = rig.agent.netlb(&["cleanup"])?;
    ensure!(said.contains("filters of clsact"), "cleanup does not tell of filters: {said}");
    ensure!(pins(rig)?.is_empty(), "pins are left");
    // A link goes a moment after its pin.
    rig.eventually("socket hooks are gone", || {
        let hooks = kernel_objects::on_cgroup(node.cgroup_path())?;
        ensure!(hooks.is_empty(), "{hooks:?}");
        Ok(())
    })?;
    let left = kernel_objects::tc(node, "-j qdisc show")?;
    let left: Vec<Value> = serde_json::from_str(&left).context("cannot understand tc")?;
    let left: Vec<&str> =
        left.iter().filter(|row| row["kind"] == "clsact").filter_map(|row| row["dev"].as_str()).collect();
    ensure!(left == [device], "clsact is left on {left:?}, and somebody else's filter is on {device} only");
    let rows = kernel_objects::filters(node, device)?;
    ensure!(foreign(device)? && rows.iter().flatten().all(|row| row["kind"] == "u32"), "after cleanup: {rows:?}");
    blocked_by_ingress(rig, device)?;
    if kernel_objects::has_tcx() {
        other_method(rig)?;
    }
    Ok(())
}

/// A device whose ingress qdisc leaves no room for clsact is left alone and named, until there is room.
fn blocked_by_ingress(rig: &Rig, device: &str) -> Result<()> {
    let node = rig.node.node(1)?;
    kernel_objects::tc(node, &format!("qdisc del dev {device} clsact"))?;
    kernel_objects::tc(node, &format!("qdisc add dev {device} ingress"))?;
    start_again(rig)?;
    rig.eventually("the agent tells of the ingress qdisc", || {
        let said = rig.agent.status()?.unwrap_or_default().to_string();
        ensure!(said.contains("the device has an ingress qdisc"), "{said}");
        Ok(())
    })?;
    let rows = kernel_objects::filters(node, device)?;
    ensure!(rows.iter().all(Vec::is_empty), "filters stand at an ingress qdisc: {rows:?}");
    kernel_objects::tc(node, &format!("qdisc del dev {device} ingress"))?;
    rig.eventually("the device has its filters", || filter_programs(rig).map(drop))?;
    rig.agent.kill9()
}

/// An agent that attaches the other way takes what the one before it put there off, once its own is on.
fn other_method(rig: &Rig) -> Result<()> {
    start_again(rig)?;
    filter_programs(rig)?;
    rig.agent.kill9()?;
    let folder = rig.node.folder().join("tcx");
    fs::create_dir(&folder)?;
    let start = |attach: &str| -> Result<Agent> {
        let options = AgentOptions { extra: vec!["--attach".into(), attach.into()], ..AgentOptions::default() };
        let node = rig.node.node(1)?;
        Agent::start(node, &netlb_program()?, &rig.node.source_path(), &folder, options, rig.node.stop())
    };
    let tcx = start("tcx")?;
    rig.eventually("links took the place of filters", || {
        ensure_attached(rig, 1)?;
        let [ingress, egress] = kernel_objects::filters(rig.node.node(1)?, "eth0")?;
        ensure!(ingress.is_empty() && egress.is_empty(), "filters beside links: {ingress:?} {egress:?}");
        Ok(())
    })?;
    tcx.kill9()?;
    let clsact = start("clsact")?;
    rig.eventually("filters took the place of links", || filter_programs(rig).map(drop))?;
    clsact.kill9()
}

/// The agent's program, where cargo puts it.
fn netlb_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("this test is in no target folder")?;
    Ok(target.join("release/netlb"))
}
