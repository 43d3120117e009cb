//! The agent on a real API server: every object's life, and all that can happen to the server, while connections through netlb go on.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testcluster::certificates::Authority;
use netlb_testnode::address::Family;
use netlb_testnode::helper::Helper;
use netlb_testnode::wire::Transport::Tcp;
use netlb_testnode::{Agent, AgentOptions, TestNode};
use netlb_tests::control_plane::ControlPlane;
use netlb_tests::harness::{self, Trial};
use netlb_tests::http;
use netlb_tests::need::{Need, need};
use netlb_tests::sockets::{self, SILENCE, expect_errno};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");
/// What the documentation tells people to allow.
const DOCUMENTATION: &str = include_str!("../docs/api-server.md");
/// Who the agent is to the API server.
const USER: &str = "netlb";

/// The pods there are; the API hears of them from the tests, as if from a kubelet.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: client}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec: {containers: [{name: web, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, labels: {app: web}}
spec: {containers: [{name: web, ports: [{containerPort: 8080}]}]}
";

/// What is asked of a stage.
type Check = fn(&Stage) -> Result<()>;

fn main() -> ExitCode {
    let stage = Rc::new(LazyCell::new(Stage::start));
    // In this order: each leaves what the next one needs.
    let trials: [(&str, Check); 9] = [
        ("without rights it says which, and begins when they are granted", rights),
        ("a Service's life, from the controllers' slices to its end", life_of_a_service),
        ("a Node's zone, a Pod and a ServiceCIDR come, change and go", other_kinds),
        ("a label takes a Service and its slices out of the watch, and back", labels),
        ("its API server away, and changes made meanwhile: nothing breaks, and all is caught up with", away),
        ("history compacted while it was away: what is gone goes, what is new comes", compacted),
        ("its API server stopped, slow and restarted: nothing changes", slow_and_restarted),
        (
            "a certificate it does not trust: an agent that starts changes nothing, and goes on with the right one",
            certificate,
        ),
        ("5,000 Services with 25,000 endpoints", many),
    ];
    let trials = trials.map(|(name, check)| {
        let stage = Rc::clone(&stage);
        Trial::new(name, move || {
            let stage = (*stage).as_ref().map_err(|error| format!("no stage: {error:#}"))?;
            check(stage).map_err(|error| format!("{error:#}\n{}", stage.agent.log_tail(25)))
        })
    });
    harness::run(need(&[Need::Root, Need::Btf, Need::ControlPlane]), trials.into())
}

/// A node with pods, a control plane on the host outside of it, an agent that follows it.
struct Stage {
    agent: Agent,
    api: ControlPlane,
    node: TestNode,
    /// The agent's credentials.
    kubeconfig: PathBuf,
}

impl Stage {
    fn start() -> Result<Self> {
        let node = TestNode::builder().helper(Helper::binary(ACTOR.into())).start()?;
        node.apply(PODS)?;
        node.settle()?;
        let started = Instant::now();
        let api = ControlPlane::start(&node)?;
        println!("the control plane is up after {:.1} s", started.elapsed().as_secs_f32());
        let kubeconfig = api.agent(USER)?;
        let options = AgentOptions { kubeconfig: Some(kubeconfig.clone()), ..AgentOptions::default() };
        let agent = node.start_agent(1, options)?;
        Ok(Self { agent, api, node, kubeconfig })
    }

    fn status(&self) -> Result<Value> {
        self.agent.status()?.context("the agent has written no status yet")
    }

    /// Waits until the source fails with these words, or (`None`) is followed.
    fn wait_source(&self, words: Option<&str>) -> Result<()> {
        self.api.eventually(&format!("the source's failure is {words:?}"), || {
            let status = self.status()?;
            let failure = status.pointer("/source/failure/reason").and_then(Value::as_str);
            let right = match (words, failure) {
                (Some(words), Some(failure)) => failure.contains(words),
                (None, None) => status.get("synced") == Some(&Value::Bool(true)),
                (Some(_), None) | (None, Some(_)) => false,
            };
            ensure!(right, "it is {failure:?}");
            Ok(())
        })
    }

    /// The maps that follow from the source, without backends that wait to be freed: they go by themselves.
    fn dump(&self) -> Result<String> {
        let text = self.agent.netlb(&["dump", "--config-only"])?;
        Ok(text.lines().filter(|line| !line.contains("state=removed")).collect::<Vec<_>>().join("\n"))
    }

    /// Where new flows of a Service in `default` go.
    fn backends(&self, service: &str) -> Result<BTreeSet<SocketAddr>> {
        let text = self.agent.netlb(&["backend", "list", "-o", "json"])?;
        let rows: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("no list of backends: {text}"))?;
        let of = format!("default/{service}");
        let is_its = |row: &&Value| row["service"].as_str().and_then(|name| name.split(':').next()) == Some(&of);
        let is_used = |row: &&Value| row["lists"].as_array().is_some_and(|lists| !lists.is_empty());
        let at = |row: &Value| -> Result<SocketAddr> {
            let address = row["address"].as_str().context("a backend without an address")?.parse()?;
            Ok(SocketAddr::new(address, u16::try_from(row["port"].as_u64().unwrap_or_default())?))
        };
        rows.iter().filter(is_its).filter(is_used).map(at).collect()
    }

    fn wait_backends(&self, service: &str, pods: &[&str]) -> Result<()> {
        let wanted: BTreeSet<SocketAddr> = pods.iter().map(|pod| self.address(pod)).collect::<Result<_>>()?;
        self.api.eventually(&format!("{service} has the backends {pods:?}"), || {
            let is = self.backends(service)?;
            ensure!(is == wanted, "they are {is:?}");
            Ok(())
        })
    }

    fn wait_gone(&self, address: &str) -> Result<()> {
        self.api.eventually(&format!("{address} is in no map"), || {
            let dump = self.dump()?;
            ensure!(!dump.contains(address), "it is:\n{dump}");
            Ok(())
        })
    }

    fn address(&self, pod: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.node.pod(pod)?.addresses().of(Family::Ipv4), 8080))
    }

    /// Asks an address from a pod; returns who answered.
    fn ask(&self, vip: SocketAddr) -> Result<String> {
        let answer = self.node.pod("client")?.run(|| sockets::ask(Tcp, vip, "who?"))??;
        Ok(answer.pod)
    }

    /// Nobody answers at an address: no frontend is left of it.
    fn ensure_silent(&self, vip: SocketAddr) -> Result<()> {
        let result = self.node.pod("client")?.run(|| sockets::connect_within(SILENCE, Tcp, None, vip))?;
        expect_errno(result, Errno::ETIMEDOUT, &format!("connect to {vip}, which is nobody's"))
    }

    /// A pod as a kubelet shows it.
    fn show_pod(&self, name: &str, ready: bool) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "node1", "containers": [{"name": "web", "image": "web"}]},
        });
        self.api.apply(&pod)?;
        let ip = self.address(name)?.ip().to_string();
        let ready = if ready { "True" } else { "False" };
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        });
        self.api.set_status(&pod, &status).map(drop)
    }

    /// While `f` runs, connection after connection is made to an address, and every one of them must be answered; some also before and after.
    fn under_load<T>(&self, vip: SocketAddr, f: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<T>) -> Result<T> {
        let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let client = self.node.pod("client")?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                client.run(|| -> Result<()> {
                    while !stop.load(Ordering::SeqCst) {
                        sockets::ask(Tcp, vip, "still there?").context("a connection under load")?;
                        asked.fetch_add(1, Ordering::SeqCst);
                        // Two processors are everybody's.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Ok(())
                })?
            });
            let more = || {
                let from = asked.load(Ordering::SeqCst);
                self.api.eventually("connections are made", || {
                    let done = asked.load(Ordering::SeqCst) - from;
                    ensure!(done >= 50 || worker.is_finished(), "{done} of 50");
                    Ok(())
                })
            };
            let result = more().and_then(|()| f(&more)).and_then(|value| more().map(|()| value));
            stop.store(true, Ordering::SeqCst);
            worker.join().map_err(|_| anyhow!("the client panicked"))??;
            result
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.api.server.pid().context("the API server does not run")?)?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to the API server"))
    }

    /// As kube-proxy's: an API server that is away is no illness.
    fn ensure_healthy(&self) -> Result<()> {
        let ask = |path| self.node.node(1)?.net().run(|| http::ask(([127, 0, 0, 1], 10256).into(), "GET", path))?;
        for path in ["/healthz", "/livez"] {
            let response = ask(path)?;
            ensure!(response.status == 200, "{path}: {} {}", response.status, response.body);
        }
        self.agent.netlb(&["status"]).context("`netlb status` does not find the node ready").map(drop)
    }
}

fn service(name: &str, ip: &str, selector: &Value) -> Value {
    let mut spec = json!({"clusterIP": ip, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]});
    if !selector.is_null() {
        spec["selector"] = selector.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// A slice by hand.
fn slice(service: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|at| json!({"addresses": [at.ip().to_string()]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

fn vip(text: &str) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), 80)
}

/// The Service that is under load while things happen to the API server.
const STEADY: &str = "10.96.9.9";

fn steady(stage: &Stage) -> Result<SocketAddr> {
    stage.api.apply(&service("steady", STEADY, &Value::Null))?;
    stage.api.apply(&slice("steady", &[stage.address("web-1")?, stage.address("web-2")?]))?;
    stage.wait_backends("steady", &["web-1", "web-2"])?;
    Ok(vip(STEADY))
}

/// The first YAML block of the documentation.
fn documented_role() -> Result<Value> {
    let block = DOCUMENTATION.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    serde_norway::from_str(block.context("the documentation shows no role")?).context("the documented role")
}

fn rights(stage: &Stage) -> Result<()> {
    stage.wait_source(Some("may not be read"))?;
    let status = stage.status()?;
    ensure!(status["synced"] == false && status["revision"].is_null(), "without a right: {status}");
    let reason = status.pointer("/source/failure/reason").and_then(Value::as_str).unwrap_or_default();
    ensure!(reason.contains(USER) && reason.ends_with("grant get, list and watch"), "{reason}");

    let role = documented_role()?;
    stage.api.apply(&role)?;
    stage.api.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role.pointer("/metadata/name")},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
    }))?;
    stage.wait_source(None)?;
    stage.api.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}))?;
    stage.api.eventually("the node is healthy", || stage.ensure_healthy())
}

fn life_of_a_service(stage: &Stage) -> Result<()> {
    let at = vip("10.96.5.5");
    let web = service("web", "10.96.5.5", &json!({"app": "web"}));
    stage.api.apply(&web)?;
    stage.show_pod("web-1", true)?;
    stage.wait_backends("web", &["web-1"])?;
    ensure!(stage.ask(at)? == "web-1", "another pod answers");
    stage.show_pod("web-2", true)?;
    stage.wait_backends("web", &["web-1", "web-2"])?;
    // Not ready: the controller says so in the slice.
    stage.show_pod("web-1", false)?;
    stage.wait_backends("web", &["web-2"])?;
    ensure!(stage.ask(at)? == "web-2", "a pod that is not ready answers");

    // Another port, and no selector any more.
    let mut changed = web.clone();
    changed["spec"]["ports"][0]["port"] = json!(81);
    stage.api.ask("PATCH", "/api/v1/namespaces/default/services/web", Some(&json!({"spec": changed["spec"]})))?;
    stage.api.eventually("the port is another", || stage.ask(SocketAddr::new(at.ip(), 81)))?;
    stage.api.delete(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-2"}}))?;
    stage.wait_backends("web", &[])?;
    stage.api.delete(&web)?;
    stage.wait_gone("10.96.5.5")?;
    stage.ensure_silent(at)
}

fn other_kinds(stage: &Stage) -> Result<()> {
    // A hint for a zone counts once the Node says which zone we are in.
    let at = steady(stage)?;
    let mut hinted = slice("steady", &[stage.address("web-1")?, stage.address("web-2")?]);
    hinted["endpoints"][0]["hints"] = json!({"forZones": [{"name": "here"}]});
    hinted["endpoints"][1]["hints"] = json!({"forZones": [{"name": "there"}]});
    stage.api.apply(&hinted)?;
    let node = |zone: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": zone}}});
    for (zone, pod) in [("here", "web-1"), ("there", "web-2")] {
        stage.api.apply(&node(json!(zone)))?;
        stage.wait_backends("steady", &[pod])?;
        ensure!(stage.ask(at)? == pod, "another zone's pod answers");
    }
    stage.api.ask(
        "PATCH",
        "/api/v1/nodes/node1",
        Some(&json!({"metadata": {"labels": {"topology.kubernetes.io/zone": null}}})),
    )?;
    steady(stage)?;

    // A pod's name stands in reports.
    stage.show_pod("web-2", true)?;
    stage.api.eventually("the pod is known by name", || {
        let list = stage.agent.netlb(&["backend", "list"])?;
        ensure!(list.contains("default/web-2"), "{list}");
        Ok(())
    })?;
    // An address of a range is dropped when nobody has it; outside of all ranges it is the host's affair.
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/16"]},
    });
    let is_in_maps = |wanted: bool| {
        stage.api.eventually("the range is in the maps, or is not", || {
            ensure!(stage.dump()?.contains("10.97.0.0/16") == wanted, "{}", stage.dump()?);
            Ok(())
        })
    };
    is_in_maps(false)?;
    stage.api.apply(&cidr)?;
    is_in_maps(true)?;
    stage.api.delete(&cidr)?;
    is_in_maps(false)
}

fn labels(stage: &Stage) -> Result<()> {
    let at = vip("10.96.6.6");
    let web = service("labelled", "10.96.6.6", &json!({"app": "web"}));
    stage.show_pod("web-1", true)?;
    stage.show_pod("web-2", true)?;
    stage.api.apply(&web)?;
    stage.wait_backends("labelled", &["web-1", "web-2"])?;
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let labelled = |value: Value| {
            let patch = json!({"metadata": {"labels": {label: value}}});
            stage.api.ask("PATCH", "/api/v1/namespaces/default/services/labelled", Some(&patch))
        };
        labelled(json!("other"))?;
        stage.wait_gone("10.96.6.6")?;
        stage.ensure_silent(at)?;
        labelled(Value::Null)?;
        stage.wait_backends("labelled", &["web-1", "web-2"])?;
        stage.ask(at)?;
    }
    stage.api.delete(&web)?;
    stage.wait_gone("10.96.6.6")
}

/// Waits until the agent says that nobody answers; everything goes on.
fn gone(stage: &Stage, more: &dyn Fn() -> Result<()>, before: &str) -> Result<()> {
    stage.wait_source(Some("does not answer"))?;
    more()?;
    let now = stage.dump()?;
    ensure!(now == before, "the maps have changed:\n{before}\n{now}");
    stage.ensure_healthy()?;
    let said = stage.agent.netlb(&["status"])?;
    ensure!(said.contains("; NOT FOLLOWED for "), "{said}");
    Ok(())
}

fn away(stage: &Stage) -> Result<()> {
    let at = steady(stage)?;
    stage.api.apply(&service("old", "10.96.7.1", &Value::Null))?;
    stage.api.apply(&slice("old", &[stage.address("web-1")?]))?;
    stage.wait_backends("old", &["web-1"])?;
    stage.under_load(at, |more| {
        let before = stage.dump()?;
        stage.api.server.kill9()?;
        gone(stage, more, &before)?;
        // The world goes on, and the agent does not know.
        stage.api.delete(&service("old", "10.96.7.1", &Value::Null))?;
        stage.api.delete(&slice("old", &[]))?;
        stage.api.apply(&service("new", "10.96.7.2", &Value::Null))?;
        stage.api.apply(&slice("new", &[stage.address("web-2")?]))?;
        more()?;
        ensure!(stage.ask(vip("10.96.7.1"))? == "web-1", "what the agent knew does not hold");

        stage.api.server.restart()?;
        stage.api.wait()?;
        stage.wait_source(None)?;
        caught_up(stage, "10.96.7.1", "10.96.7.2", "web-2")
    })
}

fn caught_up(stage: &Stage, old: &str, new: &str, pod: &str) -> Result<()> {
    stage.api.eventually("what is new answers and what is old is gone", || {
        let dump = stage.dump()?;
        ensure!(!dump.contains(old), "{old} is still there");
        ensure!(dump.contains(new), "{new} is not there");
        Ok(())
    })?;
    stage.ensure_silent(vip(old))?;
    let who = stage.api.eventually("the new Service answers", || stage.ask(vip(new)))?;
    ensure!(who == pod, "{who} answers");
    Ok(())
}

fn compacted(stage: &Stage) -> Result<()> {
    let at = steady(stage)?;
    stage.api.apply(&service("new", "10.96.7.2", &Value::Null))?;
    stage.api.apply(&slice("new", &[stage.address("web-2")?]))?;
    stage.wait_backends("new", &["web-2"])?;
    stage.under_load(at, |more| {
        let before = stage.dump()?;
        stage.api.server.kill9()?;
        gone(stage, more, &before)?;
        stage.api.delete(&service("new", "10.96.7.2", &Value::Null))?;
        stage.api.delete(&slice("new", &[]))?;
        stage.api.apply(&service("newer", "10.96.7.3", &Value::Null))?;
        stage.api.apply(&slice("newer", &[stage.address("web-1")?]))?;
        stage.api.compact()?;
        stage.api.server.restart()?;
        stage.api.wait()?;
        stage.wait_source(None)?;
        caught_up(stage, "10.96.7.2", "10.96.7.3", "web-1")
    })?;
    stage.api.delete(&service("newer", "10.96.7.3", &Value::Null))?;
    stage.wait_gone("10.96.7.3")
}

fn slow_and_restarted(stage: &Stage) -> Result<()> {
    let at = steady(stage)?;
    stage.under_load(at, |more| {
        let before = stage.dump()?;
        // Restarted at once: no word of it in the maps.
        stage.api.server.restart()?;
        stage.api.wait()?;
        stage.wait_source(None)?;
        more()?;
        let now = stage.dump()?;
        ensure!(now == before, "a restart of the API server changed the maps:\n{before}\n{now}");

        // Stopped: a silent connection is no change.
        stage.signal(Signal::SIGSTOP)?;
        more()?;
        ensure!(stage.dump()? == before, "a stopped API server changed the maps");
        stage.ensure_healthy()?;
        stage.signal(Signal::SIGCONT)?;

        // Slow: it runs a twentieth of the time. An agent that starts now gets its lists late, and whole.
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let worker = scope.spawn(|| -> Result<()> {
                while !end.load(Ordering::SeqCst) {
                    stage.signal(Signal::SIGSTOP)?;
                    std::thread::sleep(Duration::from_millis(95));
                    stage.signal(Signal::SIGCONT)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            });
            let run = || -> Result<()> {
                stage.agent.restart()?;
                stage.wait_source(None)?;
                more()?;
                ensure!(stage.dump()? == before, "an agent on a slow API server changed the maps");
                stage.api.apply(&slice("steady", &[stage.address("web-1")?]))?;
                stage.wait_backends("steady", &["web-1"])
            };
            let result = run();
            end.store(true, Ordering::SeqCst);
            worker.join().map_err(|_| anyhow!("the thread that slows the API server panicked"))??;
            result
        })
    })
}

fn certificate(stage: &Stage) -> Result<()> {
    let at = steady(stage)?;
    let right = fs::read_to_string(&stage.kubeconfig)?;
    let stranger = Authority::create(stage.node.folder().join("stranger"))?;
    let mut wrong: Value = serde_json::from_str(&right)?;
    wrong["clusters"][0]["cluster"]["certificate-authority"] = json!(stranger.files().certificate);
    stage.under_load(at, |more| {
        let before = stage.dump()?;
        replace(&stage.kubeconfig, &wrong.to_string())?;
        stage.agent.restart()?;
        stage.wait_source(Some("certificate"))?;
        more()?;
        let now = stage.dump()?;
        ensure!(now == before, "an agent that trusts nobody changed the maps:\n{before}\n{now}");
        ensure!(stage.status()?["synced"] == false, "an agent that trusts nobody is synced");
        // Renewed credentials need no restart.
        replace(&stage.kubeconfig, &right)?;
        stage.wait_source(None)?;
        let now = stage.dump()?;
        ensure!(now == before, "the maps have changed:\n{before}\n{now}");
        Ok(())
    })
}

/// Writes a file as it should be written: whole.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn many(stage: &Stage) -> Result<()> {
    const SERVICES: u32 = 5_000;
    const ENDPOINTS: u32 = 5;
    let began = Instant::now();
    let address = |base: u32, number: u32| std::net::Ipv4Addr::from(base + number).to_string();
    let services = (0..SERVICES).map(|n| service(&format!("many-{n}"), &address(0x0a60_4000, n), &Value::Null));
    let slices = (0..SERVICES).map(|n| {
        let endpoints: Vec<Value> = (0..ENDPOINTS)
            .map(|e| {
                let number = n * ENDPOINTS + e;
                json!({
                    "addresses": [address(0x0af5_0000, number)], "nodeName": format!("node{}", number % 100),
                    "conditions": {"ready": true, "serving": true, "terminating": false}, "zone": "a",
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("many-{n}-7d4b9c6f5-{e:05}")},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("many-{n}-abcde"), "labels": {"kubernetes.io/service-name": format!("many-{n}")}},
            "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        })
    });
    stage.agent.terminate()?;
    stage.agent.netlb(&["cleanup"])?;
    stage.api.apply_all(services.chain(slices).collect())?;
    println!("{SERVICES} Services made in {:.1} s", began.elapsed().as_secs_f32());

    let began = Instant::now();
    stage.agent.restart()?;
    let status = stage.api.eventually("all Services are in effect", || {
        let status = stage.status()?;
        let (ready, services) = (&status["ready"]["ready"], status["services"].as_u64().unwrap_or_default());
        ensure!(*ready == true && services >= u64::from(SERVICES), "ready: {ready}, {services} Services");
        Ok(status)
    })?;
    let took = began.elapsed();
    let memory = |field: &str| -> Result<u64> {
        let pid = stage.agent.pid().context("the agent does not run")?;
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().context("not a number")
    };
    let (now, most) = (memory("VmRSS")?, memory("VmHWM")?);
    println!(
        "{} Services with {} backends: ready {:.1} s after its start, RSS {} MB (at most {} MB)",
        status["services"],
        status["backends"],
        took.as_secs_f32(),
        now / 1024,
        most / 1024
    );
    ensure!(status["backends"].as_u64() >= Some(u64::from(SERVICES * ENDPOINTS)), "{} backends", status["backends"]);
    if now >= 100 * 1024 {
        bail!("the agent takes {now} kB");
    }
    // One change among them all is one change.
    stage.api.apply(&slice("steady", &[stage.address("web-2")?]))?;
    stage.wait_backends("steady", &["web-2"])?;
    ensure!(stage.ask(vip(STEADY))? == "web-2", "another pod answers");
    Ok(())
}
