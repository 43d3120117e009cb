//! The command line over a running node, and bad input: what is broken is named, everything else works.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, Result, bail, ensure};
use netlb_testnode::address::Family;
use netlb_testnode::agent::PIN_PATH;
use netlb_testnode::process::Stop;
use netlb_testnode::wire::Transport::{Tcp, Udp};
use netlb_testnode::{Client, PodKey, PodNetwork};
use netlb_tests::harness::{self, Trial};
use netlb_tests::http;
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets::{self, expect_errno};
use netlb_tests::traffic::WORLD;
use nix::errno::Errno;
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const STYLE: Style =
    Style { pods: PodNetwork::Routed, delivery: "auto", accel: "none", bridge_netfilter: false, tx_checksum: true };

/// What is asked of a rig.
type Check = fn(&Rig) -> Result<()>;

fn main() -> ExitCode {
    let rig = std::rc::Rc::new(std::cell::LazyCell::new(|| Rig::start(STYLE, ACTOR, WORLD)));
    let trials: [(&str, Check); 14] = [
        ("service list names Services, frontends and how many backends", service_list),
        ("backend list names Services and pods, and counts flows", backend_list),
        ("ct list shows both directions of an open connection, by name", ct_list),
        ("drops tells why, in words", drops),
        ("dump is stable, and its lines are told apart by what they mean", dump),
        ("status tells that the node is ready, by which road, and each device", status),
        ("help names every command and shows examples", help),
        ("a NetworkPolicy is reported as not enforced yet", not_enforced),
        ("ten kinds of broken objects are named, and five Services beside them work", |_| ten_problems()),
        ("a file half written is not half believed", half_written),
        ("health checks are answered on the node, follow the source, and stand in the status", health_checks),
        ("a second agent on the same pins is refused", second_agent),
        ("settings that cannot be are refused, with the remedy", bad_settings),
        ("questions are answered though the agent is dead, and status says so", dead_agent),
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

fn json(rig: &Rig, arguments: &[&str]) -> Result<Vec<Value>> {
    let text = rig.agent.netlb(&[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("netlb {arguments:?} -o json printed {text}"))
}

/// Fails unless every word stands somewhere in the text.
fn ensure_all(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} is missing in:\n{text}");
    Ok(())
}

fn ensure_no_ids(text: &str) -> Result<()> {
    // A number in place of a name is printed as service#7 or backend#7.
    ensure!(!text.contains('#'), "ids in place of names:\n{text}");
    Ok(())
}

fn service_list(rig: &Rig) -> Result<()> {
    let rows = json(rig, &["service", "list"])?;
    let mut seen = BTreeMap::new();
    for row in &rows {
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let key = (text("service"), text("protocol"), text("family"));
        seen.insert(key, (row["frontends"].clone(), row["active"].as_u64(), row["draining"].as_u64()));
    }
    for family in Family::BOTH {
        for (service, port_name, protocol, port, active) in [
            ("web", "http", "TCP", 80, 3),
            ("web", "admin", "TCP", 81, 3),
            ("dns", "dns", "UDP", 53, 2),
            ("dns", "dns-tcp", "TCP", 53, 2),
            ("empty", "http", "TCP", 80, 0),
            ("empty", "dns", "UDP", 53, 0),
            ("solo", "http", "TCP", 80, 1),
        ] {
            let key = (format!("default/{service}:{port_name}"), protocol.to_owned(), family.word().to_owned());
            let (frontends, found, draining) =
                seen.get(&key).with_context(|| format!("no row {key:?} in {seen:#?}"))?;
            ensure!((*found, *draining) == (Some(active), Some(0)), "{key:?}: {found:?} active, {draining:?} draining");
            let vip = rig.frontend(service, family, port)?;
            let own = frontends.as_array().and_then(|all| all.iter().find(|f| f["kind"] == "ClusterIP"));
            let own = own.with_context(|| format!("{key:?}: no ClusterIP in {frontends}"))?;
            let (address, found) = (serde_json::json!(vip.ip()), &own["inside"]["backends"]);
            ensure!(own["address"] == address && own["port"] == port, "{key:?}: {own}, not at {vip}");
            ensure!(*found == active && own["inside"] == own["outside"], "{key:?}: {own}, not {active} backends");
        }
    }
    let text = rig.agent.netlb(&["service", "list"])?;
    ensure_no_ids(&text)?;
    let vip = rig.frontend("web", Family::Ipv6, 80)?.to_string();
    ensure_all(&text, &["SERVICE", "default/web:http", "default/dns:dns-tcp", &vip])
}

fn backend_list(rig: &Rig) -> Result<()> {
    let flows = |rig: &Rig| -> Result<BTreeMap<String, u64>> {
        let rows = json(rig, &["backend", "list"])?;
        let own = rows.iter().filter(|row| row["service"] == "default/web:http" && row["family"] == "ipv4");
        own.map(|row| {
            ensure!(
                row["port"] == 8080 && row["protocol"] == "TCP" && row["state"] == "active" && row["local"] == true,
                "{row}"
            );
            let pod = row["pod"].as_str().with_context(|| format!("no pod's name in {row}"))?.to_owned();
            Ok((pod, row["flows"].as_u64().with_context(|| format!("no flows in {row}"))?))
        })
        .collect()
    };
    let before = flows(rig)?;
    let pods: BTreeSet<String> = rig.node.pods_of("web").iter().map(|pod| pod.key().to_string()).collect();
    ensure!(before.keys().cloned().collect::<BTreeSet<_>>() == pods, "rows for {:?}, pods are {pods:?}", before.keys());
    let vip = rig.frontend("web", Family::Ipv4, 80)?;
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..20 {
        let answer = rig.inside("client", || sockets::ask(Tcp, vip, "count me"))?;
        *answered.entry(format!("default/{}", answer.pod)).or_default() += 1;
    }
    for (pod, count) in flows(rig)? {
        let (was, wanted) =
            (before.get(&pod).copied().unwrap_or_default(), answered.get(&pod).copied().unwrap_or_default());
        ensure!(count - was == wanted, "{pod} answered {wanted} requests, {} flows were counted", count - was);
    }
    let text = rig.agent.netlb(&["backend", "list"])?;
    ensure_no_ids(&text)?;
    ensure_all(&text, &["SERVICE", "default/web:http", "default/solo", "active"])
}

fn ct_list(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let vip = rig.frontend("solo", family, 80)?;
        let stream = rig.inside("client", || sockets::tcp(None, vip))?;
        let answer = sockets::ask_on(&stream, "hello")?;
        let client = stream.local_addr()?.to_string();
        let rows = json(rig, &["ct", "list", "--address", &stream.local_addr()?.ip().to_string()])?;
        let of = |direction: &str, end: &str| {
            rows.iter()
                .find(|row| row["direction"] == direction && row[end] == client.as_str())
                .cloned()
                .with_context(|| format!("no {direction} row whose {end} is {client} in {rows:#?}"))
        };
        let (forward, reply) = (of("forward", "src")?, of("reply", "new_dst")?);
        let (vip, server) = (vip.to_string(), answer.server.to_string());
        for (row, field, wanted) in [
            (&forward, "dst", &vip),
            (&forward, "new_dst", &server),
            (&reply, "src", &server),
            (&reply, "new_src", &vip),
            (&forward, "state", &"ESTABLISHED".to_owned()),
            (&reply, "state", &"ESTABLISHED".to_owned()),
            (&forward, "service", &"default/solo:http".to_owned()),
        ] {
            ensure!(row[field] == wanted.as_str(), "{field} is {}, not {wanted}: {row}", row[field]);
        }
        ensure!(forward["assured"] == true && forward["packets"].as_u64() >= Some(3), "{forward}");
        let text = rig.agent.netlb(&["ct", "list"])?;
        ensure_no_ids(&text)?;
        ensure_all(&text, &["default/solo:http", &client, "ESTABLISHED"])?;
    }
    Ok(())
}

fn drops(rig: &Rig) -> Result<()> {
    let vip = rig.frontend("empty", Family::Ipv4, 80)?;
    let result = rig.inside("client", || sockets::ask(Tcp, vip, "anybody?"));
    expect_errno(result, Errno::ECONNREFUSED, "a Service without pods")?;
    let rows = json(rig, &["drops"])?;
    let row = rows.iter().find(|row| row["reason"] == "no_endpoints").context("no row no_endpoints")?;
    ensure!(row["kind"] == "refuse" && row["packets"].as_u64() > Some(0), "{row}");
    ensure!(
        rows.len() == netlb_common::Reason::ALL.len(),
        "{} rows for {} reasons",
        rows.len(),
        netlb_common::Reason::ALL.len()
    );
    ensure_all(&rig.agent.netlb(&["drops"])?, &["REASON", "no_endpoints", "refuse", "no endpoint"])
}

fn dump(rig: &Rig) -> Result<()> {
    let first = rig.agent.netlb(&["dump", "--config-only"])?;
    let second = rig.agent.netlb(&["dump", "--config-only"])?;
    ensure!(first == second, "two dumps of the same maps differ");
    let vip = rig.frontend("web", Family::Ipv4, 80)?.ip().to_string();
    let pod = rig.pod("solo")?.addresses().v6.to_string();
    ensure_all(&first, &[&vip, &pod])?;
    ensure!(!first.contains("counter "), "--config-only shows counters:\n{first}");
    let all = rig.agent.netlb(&["dump"])?;
    ensure!(all.starts_with(&first), "a whole dump does not begin with what the agent wrote");
    ensure_all(&all, &["counter new_flow ", "conntrack "])
}

/// `netlb status`, whatever its exit code.
fn status_output(rig: &Rig, arguments: &[&str]) -> Result<Output> {
    let run_dir = netlb_testnode::agent::run_dir(rig.node.folder(), 1);
    let mut command = Command::new(netlb_program()?);
    command.arg("status").args(arguments).args(["--pin-path", PIN_PATH]).arg("--run-dir").arg(run_dir);
    rig.node.node(1)?.place.output("netlb status", command, b"", &Stop::default())
}

fn status(rig: &Rig) -> Result<()> {
    let output = status_output(rig, &["-o", "json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success(), "exit status {} of a ready node: {status}", output.status);
    ensure!(status["alive"] == true && status["ready"]["ready"] == true && status["synced"] == true, "{status}");
    ensure!(status["pid"].as_u64() == rig.agent.pid().map(u64::from), "{status}");
    ensure!(status["delivery"]["road"] == "redirect" && status["node"] == "node1", "{status}");
    ensure!(status["problems"] == serde_json::json!([]), "problems of a good world: {}", status["problems"]);
    let devices = status["devices"].as_array().context("no devices")?;
    for pod in rig.node.pods() {
        let name = pod.device().context("every pod here has a device")?;
        let row = devices
            .iter()
            .find(|row| row["name"] == name)
            .with_context(|| format!("no device {name} in {devices:?}"))?;
        ensure!(row["attached"] == true, "{row}");
        for address in pod.addresses().both() {
            let known =
                row["addrs"].as_array().is_some_and(|list| list.iter().any(|known| *known == address.to_string()));
            ensure!(known, "{address} is not in {row}");
        }
    }
    ensure!(
        devices.len() == rig.node.pods().len(),
        "{} devices for {} pods: {devices:?}",
        devices.len(),
        rig.node.pods().len()
    );
    let text = String::from_utf8(status_output(rig, &[])?.stdout)?;
    ensure_all(
        &text,
        &[
            "ready",
            "redirect",
            "node1",
            "DEVICE",
            "UPLINK",
            "carries a default route",
            &rig.pod("solo")?.addresses().v4.to_string(),
        ],
    )
}

fn help(rig: &Rig) -> Result<()> {
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(netlb_program()?).args(arguments).output()?;
        ensure!(output.status.success(), "netlb {arguments:?}: {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    let all = ["agent", "service", "backend", "ct", "drops", "dump", "status", "trace", "cleanup", "Examples"];
    ensure_all(&run(&["--help"])?, &all)?;
    ensure_all(
        &run(&["agent", "--help"])?,
        &[
            "--source",
            "--node-name",
            "--pin-path",
            "--run-dir",
            "--cgroup",
            "--delivery",
            "--accel",
            "--detached",
            "--config",
        ],
    )?;
    for command in all.iter().take(9) {
        run(&[command, "--help"])?;
    }
    // Asked in the node like every other command.
    rig.agent.netlb(&["drops", "--all"]).map(drop)
}

fn not_enforced(rig: &Rig) -> Result<()> {
    rig.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec: {podSelector: {}}\n",
    )?;
    let status = rig.agent.status()?.context("no status")?;
    ensure!(status["not_enforced"] == serde_json::json!(["NetworkPolicy default/deny"]), "{}", status["not_enforced"]);
    ensure_all(&String::from_utf8(status_output(rig, &[])?.stdout)?, &["Not enforced", "NetworkPolicy default/deny"])?;
    rig.node.delete("NetworkPolicy", "default", "deny")?;
    rig.settle()?;
    let status = rig.agent.status()?.context("no status")?;
    ensure!(status["not_enforced"] == serde_json::json!([]), "{}", status["not_enforced"]);
    Ok(())
}

/// A Service as it would stand in the source.
fn raw_service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n")
}

fn raw_slice(name: &str, service: &str, address_type: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {address_type}\nendpoints: {endpoints}\nports: [{{name: http, port: 8080, protocol: TCP}}]\n"
    )
}

/// The Service that stands fifth beside the four of the shared world.
const FIFTH: &str = "
apiVersion: v1
kind: Service
metadata: {name: fifth}
spec: {clusterIP: 10.96.9.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
";

/// A file, what it says, and the object and the field that its problem must name.
struct Broken {
    file: &'static str,
    text: String,
    object: &'static str,
    field: &'static str,
}

fn broken() -> [Broken; 10] {
    let one = |file, object, field, text| Broken { file, text, object, field };
    let slice = |name: &str, address_type: &str, endpoints: &str| raw_slice(name, "nobody", address_type, endpoints);
    [
        one(
            "a-unparsable.yaml",
            "a-unparsable.yaml",
            "line ",
            "kind: Service\nmetadata: {name: x\nspec: [}\n".to_owned(),
        ),
        one("b-kind.yaml", "Sevrice", "kind", "apiVersion: v1\nkind: Sevrice\nmetadata: {name: b}\n".to_owned()),
        one(
            "c-port.yaml",
            "default/c",
            "spec.ports[1].port",
            raw_service("c", "{clusterIP: 10.96.9.3, ports: [{name: a, port: 80}, {name: b, port: 70000}]}"),
        ),
        one("d-fqdn.yaml", "default/d", "addressType", slice("d", "FQDN", "[{addresses: [example.org]}]")),
        one(
            "e-twice.yaml",
            "default/e",
            "endpoints[1].addresses[0]",
            raw_service("e", "{clusterIP: 10.96.9.5, ports: [{name: http, port: 80}]}")
                + "---\n"
                + &raw_slice("e", "e", "IPv4", "[{addresses: [10.244.9.9]}, {addresses: [10.244.9.9]}]"),
        ),
        // Of the same age as the owner of the address; then the name decides.
        one(
            "f-taken.yaml",
            "default/taker",
            "spec.ports[0].port",
            raw_service("taker", "{clusterIP: 10.96.9.1, ports: [{name: http, port: 80}]}"),
        ),
        one(
            "g-long.yaml",
            "Service",
            "metadata.name",
            raw_service(&"n".repeat(10_000), "{clusterIP: 10.96.9.7, ports: [{port: 80}]}"),
        ),
        one(
            "h-type.yaml",
            "default/h",
            "spec.ports[0].port",
            raw_service("h", "{clusterIP: 10.96.9.8, ports: [{port: http}]}"),
        ),
        one(
            "i-address.yaml",
            "default/i",
            "spec.clusterIP",
            raw_service("i", "{clusterIP: 10.96.9.300, ports: [{port: 80}]}"),
        ),
        one(
            "j-endpoint.yaml",
            "default/j",
            "endpoints[0].addresses[0]",
            slice("j", "IPv4", "[{addresses: [10.244.9.999]}]"),
        ),
    ]
}

fn ten_problems() -> Result<()> {
    let broken = broken();
    let files = broken.each_ref().map(|one| (one.file, one.text.clone()));
    // There from the start, so that the agent never saw this folder whole.
    let rig = Rig::start_beside(STYLE, ACTOR, &format!("{WORLD}---{FIFTH}"), &files)?;
    let check = |when: &str| -> Result<()> {
        ensure_ten(&rig, &broken).with_context(|| when.to_owned())?;
        five_work(&rig).with_context(|| when.to_owned())
    };
    check("from the start")?;

    for (file, _) in &files {
        rig.node.write_raw(file, None)?;
    }
    rig.settle()?;
    let status = rig.agent.status()?.context("no status")?;
    ensure!(status["problems"] == serde_json::json!([]), "problems that were solved: {}", status["problems"]);
    for (file, text) in &files {
        rig.node.write_raw(file, Some(text))?;
    }
    rig.settle()?;
    check("into a running agent's folder")?;

    rig.agent.restart()?;
    rig.settle()?;
    check("restarted beside a file that it cannot read")?;

    // Everything else goes on: new Services come, pods go.
    rig.apply("apiVersion: v1\nkind: Service\nmetadata: {name: sixth}\nspec: {selector: {app: dns}, ports: [{port: 80, targetPort: dns-tcp}]}\n")?;
    rig.scale("web", 2)?;
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        wanted.push((Tcp, rig.frontend("sixth", family, 80)?, rig.backends("dns", family, 5354)));
        wanted.push((Tcp, rig.frontend("web", family, 80)?, rig.backends("web", family, 8080)));
    }
    rig.ask_all(&Client::Pod(PodKey::parse("client")), &wanted)
}

fn ensure_ten(rig: &Rig, broken: &[Broken; 10]) -> Result<()> {
    let status: Value = serde_json::from_slice(&status_output(rig, &["-o", "json"])?.stdout)?;
    let problems = status["problems"].as_array().context("no problems")?;
    let listed = serde_json::to_string_pretty(problems)?;
    ensure!(problems.len() == broken.len(), "{} problems, not {}:\n{listed}", problems.len(), broken.len());
    for Broken { file, object, field, .. } in broken {
        let problem = problems.iter().find(|problem| problem["file"] == *file);
        let problem = problem.with_context(|| format!("no problem of {file}:\n{listed}"))?;
        let text = |name: &str| problem[name].as_str().unwrap_or_default();
        ensure!(text("object").contains(object), "{file}: the object is {:?}, not {object}", text("object"));
        ensure!(text("field").starts_with(field), "{file}: the field is {:?}, not {field}", text("field"));
        ensure!(!text("message").is_empty() && !text("remedy").is_empty(), "{file}: {problem}");
        ensure!(problem.to_string().len() < 2000, "{file}: a problem of {} bytes", problem.to_string().len());
    }
    let text = String::from_utf8(status_output(rig, &[])?.stdout)?;
    ensure_all(&text, &["Problems (10)", "j-endpoint.yaml", "endpoints[0].addresses[0]"])
}

fn five_work(rig: &Rig) -> Result<()> {
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        wanted.push((Tcp, rig.frontend("web", family, 80)?, rig.backends("web", family, 8080)));
        wanted.push((Tcp, rig.frontend("web", family, 81)?, rig.backends("web", family, 9090)));
        wanted.push((Udp, rig.frontend("dns", family, 53)?, rig.backends("dns", family, 5353)));
        wanted.push((Tcp, rig.frontend("solo", family, 80)?, rig.backends("solo", family, 8080)));
        wanted.push((Tcp, rig.frontend("fifth", family, 80)?, rig.backends("web", family, 8080)));
        // It has no pods: to work is to refuse.
        wanted.push((Tcp, rig.frontend("empty", family, 80)?, BTreeSet::new()));
    }
    rig.ask_all(&Client::Pod(PodKey::parse("client")), &wanted)
}

fn half_written(rig: &Rig) -> Result<()> {
    let solo = rig.pod("solo")?.addresses();
    let whole = format!(
        "{}---\n{}",
        raw_service("whole", "{clusterIP: 10.96.9.20, ports: [{name: http, port: 80}]}"),
        raw_slice("whole-1", "whole", "IPv4", &format!("[{{addresses: ['{}']}}]", solo.v4))
    );
    let vip = "10.96.9.20:80".parse()?;
    let ask = || rig.inside("client", || sockets::ask(Tcp, vip, "whole?"));
    let problems = || -> Result<Vec<Value>> {
        let status = rig.agent.status()?.context("no status")?;
        Ok(status["problems"].as_array().cloned().unwrap_or_default())
    };
    rig.node.write_raw("whole.yaml", Some(&whole))?;
    rig.settle()?;
    ask().context("the whole file")?;

    // Cut in its second document: the first one, still whole, must not come true by itself either.
    let changed = whole.replace("port: 80}", "port: 81}");
    let half = changed.get(..changed.len() - 40).context("long enough")?;
    rig.node.write_raw("whole.yaml", Some(half))?;
    rig.settle()?;
    let listed = problems()?;
    ensure!(listed.len() == 1 && listed.iter().all(|p| p["file"] == "whole.yaml"), "problems: {listed:?}");
    ask().context("the file is half written, its former state must hold")?;
    let port_81 = rig.inside("client", || sockets::ask(Tcp, "10.96.9.20:81".parse()?, "half?"));
    expect_errno(port_81, Errno::ECONNREFUSED, "the port that only the half file names")?;

    rig.node.write_raw("whole.yaml", Some(&whole))?;
    rig.settle()?;
    ensure!(problems()?.is_empty(), "problems of a file that is whole again: {:?}", problems()?);
    ask().context("the file is whole again")?;
    rig.node.write_raw("whole.yaml", None)?;
    rig.settle()
}

fn health_checks(rig: &Rig) -> Result<()> {
    let net = rig.node.node(1)?.net();
    let ask = |at: SocketAddr, path: &str| net.run(|| http::ask(at, "GET", path))?;
    for path in ["/healthz", "/livez"] {
        let response = ask("127.0.0.1:10256".parse()?, path)?;
        ensure!(response.status == 200 && response.body.contains("\"healthy\":true"), "{path}: {response:?}");
    }
    let status = || rig.agent.status()?.context("no status");
    let listed = status()?;
    ensure!(listed["health"]["healthz"] == "0.0.0.0:10256", "{}", listed["health"]);
    // NodePorts, and health checks with them, answer on the node's primary addresses.
    let address: IpAddr = listed["node_addresses"][0].as_str().context("the node has no address")?.parse()?;
    let at = SocketAddr::new(address, 30999);
    let balancer = raw_service(
        "balanced",
        "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30999, clusterIP: 10.96.9.30, ports: [{name: http, port: 80}]}",
    );
    let solo = rig.pod("solo")?.addresses();
    let slice = |ready: bool| {
        let endpoint = format!("[{{addresses: ['{}'], nodeName: node1, conditions: {{ready: {ready}}}}}]", solo.v4);
        raw_slice("balanced-1", "balanced", "IPv4", &endpoint)
    };
    for (ready, status, count) in [(true, 200, "1"), (false, 503, "0"), (true, 200, "1")] {
        rig.node.write_raw("balanced.yaml", Some(&format!("{balancer}---\n{}", slice(ready))))?;
        rig.settle()?;
        rig.eventually("the health check answers", || {
            let response = ask(at, "/")?;
            let weight = response.header("X-Load-Balancing-Endpoint-Weight");
            ensure!(response.status == status && weight == Some(count), "{response:?}");
            Ok(())
        })?;
    }
    let text = String::from_utf8(status_output(rig, &[])?.stdout)?;
    ensure_all(&text, &["HEALTH PORT", "30999", "default/balanced", "1 ipv4", &address.to_string()])?;

    // Somebody else has the next port.
    let squatter = net.run(|| TcpListener::bind(SocketAddr::new(address, 31999)))??;
    let moved = balancer.replace("30999", "31999");
    rig.node.write_raw("balanced.yaml", Some(&format!("{moved}---\n{}", slice(true))))?;
    rig.settle()?;
    rig.eventually("the old port is closed", || {
        ensure!(ask(at, "/").is_err(), "it answers");
        Ok(())
    })?;
    rig.eventually("the port that is taken is a problem", || {
        let problems = status()?["problems"].clone();
        let fits = |p: &Value| p["object"] == "Service default/balanced" && p["field"] == "spec.healthCheckNodePort";
        let found = problems.as_array().is_some_and(|all| all.iter().any(|p| fits(p) && p["file"] == "balanced.yaml"));
        ensure!(found, "{problems}");
        Ok(())
    })?;
    drop(squatter);
    rig.eventually("the port opens once it is free", || {
        ensure!(ask(SocketAddr::new(address, 31999), "/")?.status == 200);
        ensure!(status()?["problems"] == serde_json::json!([]), "{}", status()?["problems"]);
        Ok(())
    })?;
    rig.node.write_raw("balanced.yaml", None)?;
    rig.settle()?;
    rig.eventually("the port closes with its Service", || {
        ensure!(ask(SocketAddr::new(address, 31999), "/").is_err(), "it answers");
        ensure!(status()?["health"]["ports"] == serde_json::json!([]), "{}", status()?["health"]);
        Ok(())
    })
}

/// Starts an agent on the node beside the rig's, and returns how it ended.
fn agent_output(rig: &Rig, arguments: &[&str], edit: impl FnOnce(&mut Command)) -> Result<Output> {
    let mut command = Command::new(netlb_program()?);
    command.arg("agent").args(arguments);
    edit(&mut command);
    rig.node.node(1)?.place.output("an agent", command, b"", &Stop::default())
}

/// Fails unless an agent ended with exit code 1 (or 2, for usage) and these words.
fn ensure_refused(output: &Output, words: &[&str]) -> Result<()> {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(matches!(output.status.code(), Some(1 | 2)), "ended by {}:\n{text}", output.status);
    ensure_all(&text, words)
}

fn second_agent(rig: &Rig) -> Result<()> {
    let source = rig.node.source_path().display().to_string();
    let cgroup = rig.node.node(1)?.cgroup_path().display().to_string();
    let run_dir = rig.node.folder().join("second").display().to_string();
    let common = ["--source", &source, "--cgroup", &cgroup, "--node-name", "node1"];
    let before = rig.agent.netlb(&["dump", "--config-only"])?;
    let output = agent_output(rig, &[&common[..], &["--pin-path", PIN_PATH, "--run-dir", &run_dir]].concat(), |_| ())?;
    ensure_refused(&output, &[PIN_PATH, "in use by another"])?;
    ensure!(rig.agent.netlb(&["dump", "--config-only"])? == before, "the second agent changed the maps");
    let cleanup = rig.agent.netlb(&["cleanup"]).err().context("cleanup under a running agent succeeded")?;
    ensure_all(&format!("{cleanup:#}"), &["in use by"])?;
    five_work_quick(rig)
}

fn five_work_quick(rig: &Rig) -> Result<()> {
    let wanted = [(Tcp, rig.frontend("web", Family::Ipv4, 80)?, rig.backends("web", Family::Ipv4, 8080))];
    rig.ask_all(&Client::Pod(PodKey::parse("client")), &wanted)
}

fn bad_settings(rig: &Rig) -> Result<()> {
    let source = rig.node.source_path().display().to_string();
    let cgroup = rig.node.node(1)?.cgroup_path().display().to_string();
    let folder = rig.node.folder();
    let elsewhere = folder.join("elsewhere").display().to_string();
    let run_dir = folder.join("other").display().to_string();
    let good = [
        "--source",
        &source,
        "--cgroup",
        &cgroup,
        "--node-name",
        "node1",
        "--run-dir",
        &run_dir,
        "--pin-path",
        "/sys/fs/bpf/other",
    ];
    let misspelt = folder.join("misspelt.yaml");
    std::fs::write(&misspelt, "delivery: stack\nmax-servces: 5\n")?;
    let misspelt = misspelt.display().to_string();

    let cases: [(&[&str], &[&str]); 8] = [
        (&["--source", "/nowhere"], &["/nowhere", "folder"]),
        (&[], &["--source"]),
        (&["--accel", "xdp"], &["--accel xdp", "not built yet"]),
        (&["--delivery", "pigeon"], &["pigeon", "stack", "redirect"]),
        (&["--max-services", "0"], &["--max-services", "out of range"]),
        (&["--cgroup", "/proc"], &["--cgroup /proc", "cgroup2"]),
        (&["--config", &misspelt], &["max-servces", "line 2"]),
        (&["--pin-path", &elsewhere], &[&elsewhere, "bpf"]),
    ];
    for (bad, words) in cases {
        // A flag that is to be bad must not be there twice.
        let kept = good.chunks(2).filter(|pair| pair.first() != bad.first()).flatten().copied();
        let arguments: Vec<&str> =
            if bad.is_empty() { vec!["--node-name", "n"] } else { kept.chain(bad.iter().copied()).collect() };
        let output = agent_output(rig, &arguments, |_| ())?;
        ensure_refused(&output, words).with_context(|| format!("netlb agent {arguments:?}"))?;
    }

    let output = agent_output(rig, &good, |command| {
        let drop_all = || {
            for capability in 0..=40 {
                // SAFETY: prctl with these arguments only changes a set of the calling process; it takes no pointers.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) };
            }
            Ok(())
        };
        // SAFETY: the hook calls prctl only, which is safe between fork and exec.
        unsafe { command.pre_exec(drop_all) };
    })?;
    ensure_refused(&output, &["CAP_BPF", "root"])?;

    let nothing = status_output_of(&run_dir)?;
    ensure_refused(&nothing, &[&run_dir, "netlb agent"])
}

fn status_output_of(run_dir: &str) -> Result<Output> {
    Ok(Command::new(netlb_program()?).args(["status", "--run-dir", run_dir]).output()?)
}

fn dead_agent(rig: &Rig) -> Result<()> {
    // Names of what was new just now may follow a moment later.
    rig.eventually("every Service has its name", || ensure_no_ids(&rig.agent.netlb(&["service", "list"])?))?;
    rig.agent.kill9()?;
    let output = status_output(rig, &[])?;
    ensure!(output.status.code() == Some(1), "exit status {} of a dead agent's status", output.status);
    ensure_all(&String::from_utf8_lossy(&output.stdout), &["DEAD"])?;
    let status: Value = serde_json::from_slice(&status_output(rig, &["-o", "json"])?.stdout)?;
    ensure!(status["alive"] == false, "{status}");
    let text = rig.agent.netlb(&["service", "list"])?;
    ensure_no_ids(&text)?;
    ensure_all(&text, &["default/web:http"])?;
    for arguments in [&["backend", "list"][..], &["ct", "list"], &["drops"], &["dump"]] {
        rig.agent.netlb(arguments)?;
    }
    five_work_quick(rig)?;
    rig.agent.restart()?;
    rig.settle()
}

/// The agent's program, where cargo puts it.
fn netlb_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let Some(target) = own.ancestors().nth(3) else { bail!("this test is in no target folder") };
    let program: &Path = &target.join("release/netlb");
    ensure!(program.is_file(), "there is no {}; do `cargo build --release -p netlb-user`", program.display());
    Ok(program.to_owned())
}
