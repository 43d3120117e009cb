//! kube-proxy's own scripts of health checks (`truth/health`), over real HTTP against the real servers, and what they do not say: ports that are
//! taken, families, Services that go.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;
use netlb_tests::harness::{self, Trial};
use netlb_tests::http::{Response, ask};
use netlb_tests::need::{Need, need};
use netlb_user::health::{Addresses, Clock, Feed, Health, HealthPort, Listen, Moment, Opened, Ready, Site};
use netlb_user::k8s::convert;
use netlb_user::model::{Family, NodeName, ServiceName, World};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a port may take to open or close before the test calls it stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where `/healthz` and `/livez` answer.
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// A queue that is older makes the proxy ill, unless a script says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A check that stands by itself.
type Check = fn() -> Result<()>;

fn main() -> ExitCode {
    let needed = need(&[Need::Root]);
    let scripts = match (load::<PortScript>("service-ports.yaml"), load::<ProxyScript>("proxy.yaml")) {
        (Ok(ports), Ok(proxy)) => (ports, proxy),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    // Ports of scripts are numbers, so they are opened where nobody else lives.
    if needed.is_ok()
        && let Err(error) = enter_namespace()
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let (ports, proxy) = &scripts;
    let mut trials = Vec::new();
    let (mut port_checks, mut proxy_checks) = (0, 0);
    for script in ports {
        let checks = script.steps.iter().filter(|step| step.ask.is_some()).count();
        port_checks += checks;
        let name = format!("{} (line {}, {checks} checks)", script.name, script.line);
        trials.push(Trial::new(name, move || script.run().map_err(text)));
    }
    for script in proxy {
        let checks = script.steps.iter().filter(|step| step.ask.is_some()).count();
        proxy_checks += checks;
        let name = format!("{} (line {}, {checks} checks)", script.name, script.line);
        trials.push(Trial::new(name, move || script.run().map_err(text)));
    }
    println!("service health: {port_checks} checks, proxy health: {proxy_checks} checks");
    let own: [(&str, Check); 6] = [
        ("every path and method of a Service's port, and two of the proxy's", paths),
        ("a port follows its Service's endpoints, and closes with it", follows),
        ("each family is answered its own count", families),
        ("a port that is taken is a problem, and opens when it is free", taken),
        ("a port passes from one Service to another in one step", passes),
        ("who keeps connections open keeps nobody from asking", many_connections),
    ];
    trials.extend(own.map(|(name, check)| Trial::new(name, move || check().map_err(text))));
    harness::run(needed, trials)
}

fn text(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn load<T: for<'de> Deserialize<'de>>(file: &str) -> Result<Vec<T>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("truth/health").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_norway::from_str(&text).with_context(|| path.display().to_string())
}

/// This thread, and those it starts, live in a namespace with nothing but a loopback.
fn enter_namespace() -> Result<()> {
    let net = NetNs::create()?;
    Links::open(&net)?.up("lo")?;
    net.enter()
}

// ---- kube-proxy's scripts

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortScript {
    name: String,
    line: u32,
    family: String,
    addresses: BTreeSet<IpAddr>,
    steps: Vec<PortStep>,
}

/// One of the three.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct PortStep {
    services: Option<BTreeMap<String, u16>>,
    endpoints: Option<BTreeMap<String, usize>>,
    ask: Option<PortAsk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortAsk {
    service: String,
    path: String,
    proxy: ProxyIs,
    status: u16,
    local: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProxyIs {
    Healthy,
    Ill,
}

impl PortScript {
    fn run(&self) -> Result<()> {
        let family = family(&self.family)?;
        let servers = Servers::start(None, TIMEOUT)?;
        servers.health().updated(family);
        if !self.addresses.is_empty() {
            servers.health().set_addresses(Addresses::These(self.addresses.clone()));
        }
        let at = self.addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let mut ports: BTreeMap<ServiceName, HealthPort> = BTreeMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            let check = || -> Result<()> {
                let Some(ask) = &step.ask else { return Ok(()) };
                let port = ports.get(&service(&ask.service)?).context("no such Service")?.port;
                servers.be(family, ask.proxy);
                ask.check(SocketAddr::new(at, port))
            };
            check().with_context(|| format!("step {}", index + 1))?;
            if let Some(services) = &step.services {
                let before: Vec<u16> = ports.values().map(|port| port.port).collect();
                ports = services
                    .iter()
                    .map(|(name, port)| Ok((service(name)?, health_port(*port, &[family]))))
                    .collect::<Result<_>>()?;
                servers.health().sync_services(ports.clone());
                let listening: BTreeSet<(SocketAddr, Site)> = ports
                    .iter()
                    .map(|(name, port)| {
                        let on = self.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                        (SocketAddr::new(on, port.port), Site::Service(name.clone()))
                    })
                    .collect();
                servers.wait("ports of the step", |opened| opened.open == listening && opened.failed.is_empty())?;
                for port in before.into_iter().filter(|port| !ports.values().any(|open| open.port == *port)) {
                    ensure_closed(SocketAddr::new(at, port))?;
                }
            }
            if let Some(endpoints) = &step.endpoints {
                let ready = endpoints.iter().map(|(name, count)| Ok((service(name)?, Ready::from([(family, *count)]))));
                servers.health().sync_endpoints(&ready.collect::<Result<_>>()?);
            }
        }
        Ok(())
    }
}

impl PortAsk {
    fn check(&self, at: SocketAddr) -> Result<()> {
        let response = ask(at, "GET", &self.path)?;
        let name = service(&self.service)?;
        ensure_service(&response, &name, self.local, self.proxy == ProxyIs::Healthy)?;
        ensure!(response.status == self.status, "status {}, not {}", response.status, self.status);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxyScript {
    name: String,
    line: u32,
    path: String,
    timeout: u64,
    steps: Vec<ProxyStep>,
}

/// A time, and what happens then.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxyStep {
    at: u64,
    queued: Option<String>,
    updated: Option<String>,
    node: Option<NodeIs>,
    ask: Option<ProxyAsk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeIs {
    taints: Vec<String>,
    deleting: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxyAsk {
    status: u16,
    healthy: bool,
    eligible: Option<bool>,
    last: u64,
    families: BTreeMap<String, FamilyIs>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyIs {
    healthy: bool,
    last: Option<u64>,
}

impl ProxyScript {
    fn run(&self) -> Result<()> {
        let servers = Servers::start(Some(PROXY), Duration::from_secs(self.timeout))?;
        servers.wait("the proxy's port", |opened| opened.open == BTreeSet::from([(PROXY, Site::Proxy)]))?;
        let (here, mut world) = (NodeName::new("node1"), World::default());
        NodeIs { taints: Vec::new(), deleting: false }.apply(&mut world)?;
        servers.health().see_node(&world, &here);
        for (index, step) in self.steps.iter().enumerate() {
            servers.set_clock(step.at);
            if let Some(name) = &step.queued {
                servers.health().queued(family(name)?);
            }
            if let Some(name) = &step.updated {
                servers.health().updated(family(name)?);
            }
            if let Some(node) = &step.node {
                node.apply(&mut world)?;
                servers.health().see_node(&world, &here);
            }
            if let Some(expected) = &step.ask {
                let response = ask(PROXY, "GET", &self.path)?;
                expected.check(&response, step.at).with_context(|| format!("step {}: {response:?}", index + 1))?;
            }
        }
        Ok(())
    }
}

impl NodeIs {
    /// By way of an object, as the source would tell.
    fn apply(&self, world: &mut World) -> Result<()> {
        let taints: Vec<Value> = self.taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        let mut metadata = json!({"name": "node1"});
        if self.deleting {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
        learn(world, &node)
    }
}

impl ProxyAsk {
    fn check(&self, response: &Response, at: u64) -> Result<()> {
        ensure_json(response)?;
        ensure!(response.status == self.status, "status is not {}", self.status);
        let mut body = format!("{{\"lastUpdated\":\"{}\",\"currentTime\":\"{}\"", stamp(self.last)?, stamp(at)?);
        if let Some(eligible) = self.eligible {
            body += &format!(",\"nodeEligible\":{eligible}");
        }
        body += &format!(",\"healthy\":{}", self.healthy);
        let mut families = Vec::new();
        for (name, is) in &self.families {
            // One without an update is starting, which is healthy.
            ensure!(is.healthy || is.last.is_some(), "{name} is ill without an update: no script says so");
            if let Some(last) = is.last {
                families.push(format!(
                    "\"{name}\":{{\"lastUpdated\":\"{}\",\"healthy\":{}}}",
                    stamp(last)?,
                    is.healthy
                ));
            }
        }
        if !families.is_empty() {
            body += &format!(",\"status\":{{{}}}", families.join(","));
        }
        body += "}";
        ensure!(response.body == body, "body is not {body}");
        Ok(())
    }
}

// ---- what the scripts do not say

fn paths() -> Result<()> {
    let servers = Servers::start(Some(PROXY), TIMEOUT)?;
    let name = service("shop/web")?;
    servers.health().sync_services([(name.clone(), health_port(30500, &[Family::V4]))].into());
    servers.health().sync_endpoints(&[(name.clone(), Ready::from([(Family::V4, 2)]))].into());
    servers.wait("both ports", |opened| opened.open.len() == 2)?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 30500));
    for (method, path) in [("GET", "/"), ("GET", "/any/where?x=1"), ("POST", "/healthz"), ("PUT", "/livez")] {
        ensure_service(&ask(at, method, path)?, &name, 2, true).with_context(|| format!("{method} {path}"))?;
    }
    let head = ask(at, "HEAD", "/")?;
    ensure!(head.status == 200 && head.body.is_empty(), "{head:?}");
    ensure!(head.header("Content-Length") == Some("111"), "{head:?}");

    let eligible = |eligible| servers.health().set_node_eligible(eligible);
    eligible(true);
    for path in ["/healthz", "/livez", "/healthz?verbose"] {
        ensure!(ask(PROXY, "GET", path)?.status == 200, "{path}");
    }
    eligible(false);
    ensure!(ask(PROXY, "GET", "/healthz")?.status == 503 && ask(PROXY, "GET", "/livez")?.status == 200);
    for path in ["/", "/healthz/", "/metrics"] {
        let response = ask(PROXY, "GET", path)?;
        ensure!(response.status == 404 && response.body == "404 page not found\n", "{path}: {response:?}");
    }
    Ok(())
}

fn follows() -> Result<()> {
    let servers = Servers::start(None, TIMEOUT)?;
    let mut feed = Feed::new(servers.health().clone(), NodeName::new("node1"));
    servers.health().set_addresses(Addresses::All);
    let (mut world, name) = (World::default(), service("shop/web")?);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 30500));
    let touched = || BTreeSet::from([name.clone()]);
    let mut now = |world: &mut World, objects: &[Value]| -> Result<()> {
        objects.iter().try_for_each(|object| learn(world, object))?;
        feed.learned(world, touched());
        feed.applied(world);
        Ok(())
    };
    let slice = |suffix: &str, port: u16, endpoints: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("web-{suffix}"), "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": format!("p{port}"), "port": port}, {"name": format!("q{port}"), "port": port + 1}],
        })
    };
    let balancer = |kind: &str, policy: &str, cluster_ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": kind, "externalTrafficPolicy": policy, "clusterIP": cluster_ip, "healthCheckNodePort": 30500,
                "ports": [{"name": "p8080", "port": 80}],
            },
        })
    };
    let pod = |last: u8, node: &str, ready: bool, terminating: bool| {
        let conditions = json!({"ready": ready, "serving": true, "terminating": terminating});
        json!({"addresses": [format!("10.0.0.{last}")], "nodeName": node, "conditions": conditions})
    };

    // Two ports and two slices with one address: it counts once. Elsewhere, not ready, or about to end: not at all.
    let first = slice(
        "a",
        8080,
        json!([pod(1, "node1", true, false), pod(2, "node2", true, false), pod(3, "node1", false, false)]),
    );
    let second = slice(
        "b",
        9090,
        json!([pod(1, "node1", true, false), pod(4, "node1", true, false), pod(5, "node1", false, true)]),
    );
    now(&mut world, &[balancer("LoadBalancer", "Local", "10.96.0.7"), first, second.clone()])?;
    servers.wait("the Service's port", |opened| opened.open.len() == 1)?;
    ensure_service(&ask(at, "GET", "/")?, &name, 2, true)?;

    now(&mut world, &[slice("a", 8080, json!([])), slice("b", 9090, json!([pod(5, "node1", false, true)]))])?;
    ensure_service(&ask(at, "GET", "/")?, &name, 0, true)?;
    now(&mut world, &[second])?;
    ensure_service(&ask(at, "GET", "/")?, &name, 2, true)?;

    for (kind, policy, cluster_ip) in [
        ("NodePort", "Local", "10.96.0.7"),
        ("LoadBalancer", "Cluster", "10.96.0.7"),
        ("LoadBalancer", "Local", "None"),
    ] {
        now(&mut world, &[balancer(kind, policy, cluster_ip)])?;
        servers.wait("no port", |opened| opened.open.is_empty())?;
        ensure_closed(at)?;
        now(&mut world, &[balancer("LoadBalancer", "Local", "10.96.0.7")])?;
        servers.wait("the Service's port again", |opened| opened.open.len() == 1)?;
        ensure_service(&ask(at, "GET", "/")?, &name, 2, true)?;
    }
    Ok(())
}

fn families() -> Result<()> {
    let servers = Servers::start(None, TIMEOUT)?;
    let (both, six) = (service("shop/both")?, service("shop/six")?);
    let ports = [
        (both.clone(), health_port(30500, &[Family::V4, Family::V6])),
        (six.clone(), health_port(30501, &[Family::V6])),
    ];
    servers.health().sync_services(ports.into());
    let counts = |v4, v6| Ready::from([(Family::V4, v4), (Family::V6, v6)]);
    servers.health().sync_endpoints(&[(both.clone(), counts(1, 2)), (six.clone(), counts(0, 3))].into());
    servers.wait("both ports", |opened| opened.open.len() == 2)?;
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let check = |addr, port, name: &ServiceName, count| {
        let response = ask(SocketAddr::new(addr, port), "GET", "/")?;
        ensure_service(&response, name, count, true).with_context(|| format!("{addr} port {port}"))
    };
    check(v4, 30500, &both, 1)?;
    check(v6, 30500, &both, 2)?;
    check(v4, 30501, &six, 3)?;
    check(v6, 30501, &six, 3)?;

    // On addresses of its own a Service listens in its own families.
    servers.health().set_addresses(Addresses::These([v4, v6].into()));
    let wanted = [(v4, 30500, &both), (v6, 30500, &both), (v6, 30501, &six)];
    let wanted = wanted.map(|(addr, port, name)| (SocketAddr::new(addr, port), Site::Service(name.clone())));
    servers.wait("ports on addresses", |opened| opened.open == BTreeSet::from(wanted.clone()))?;
    check(v4, 30500, &both, 1)?;
    check(v6, 30501, &six, 3)?;
    ensure_closed(SocketAddr::new(v4, 30501))?;
    ensure_closed(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 30500)))
}

fn taken() -> Result<()> {
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 30500));
    let squatter = TcpListener::bind(at).context("the port is free")?;
    let servers = Servers::start(None, TIMEOUT)?;
    let name = service("shop/web")?;
    servers.health().sync_services([(name.clone(), health_port(30500, &[Family::V4]))].into());
    servers.wait("a failure", |opened| opened.failed.len() == 1 && opened.open.is_empty())?;
    let [problem] =
        servers.health().problems(&World::default()).try_into().map_err(|all| anyhow::anyhow!("{all:?}"))?;
    ensure!((problem.object.as_str(), problem.field.as_str()) == ("Service shop/web", "spec.healthCheckNodePort"));
    ensure!(problem.message.contains("0.0.0.0:30500 cannot be opened: Address already in use"), "{problem}");
    drop(squatter);
    servers.wait("the port", |opened| opened.failed.is_empty() && opened.open.len() == 1)?;
    ensure!(servers.health().problems(&World::default()).is_empty());
    ensure_service(&ask(SocketAddr::from((Ipv4Addr::LOCALHOST, 30500)), "GET", "/")?, &name, 0, true)
}

fn passes() -> Result<()> {
    let servers = Servers::start(None, TIMEOUT)?;
    let (old, new) = (service("shop/old")?, service("shop/new")?);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 30500));
    for (name, other) in [(&old, &new), (&new, &old), (&old, &new)] {
        servers.health().sync_services([(name.clone(), health_port(30500, &[Family::V4]))].into());
        let (site, failed) = (Site::Service(name.clone()), Cell::new(false));
        servers.wait("the port of the next", |opened| {
            failed.set(failed.get() || !opened.failed.is_empty());
            opened.open.iter().any(|(_, open)| *open == site)
        })?;
        ensure!(!failed.get(), "the port was taken for a while");
        ensure_service(&ask(at, "GET", "/")?, name, 0, true).with_context(|| format!("after {other}"))?;
    }
    Ok(())
}

fn many_connections() -> Result<()> {
    let servers = Servers::start(None, TIMEOUT)?;
    let name = service("shop/web")?;
    servers.health().sync_services([(name.clone(), health_port(30500, &[Family::V4]))].into());
    servers.wait("the port", |opened| opened.open.len() == 1)?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 30500));
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect_timeout(&at, PATIENCE).context("a silent connection")?);
    }
    ensure_service(&ask(at, "GET", "/")?, &name, 0, true)?;
    // Long before its silence alone would end it.
    let oldest = silent.first_mut().context("there are many")?;
    oldest.set_read_timeout(Some(PATIENCE))?;
    ensure!(matches!(oldest.read(&mut [0]), Ok(0)), "the oldest connection is still open");
    let newest = silent.last_mut().context("there are many")?;
    newest.set_nonblocking(true)?;
    let read = newest.read(&mut [0]);
    ensure!(matches!(&read, Err(e) if e.kind() == ErrorKind::WouldBlock), "the newest connection: {read:?}");
    Ok(())
}

// ---- tools

/// The real servers with a clock that stands still.
struct Servers {
    /// There until the end.
    health: Option<Health>,
    /// Seconds since 1970.
    clock: Arc<Mutex<u64>>,
    news: Receiver<()>,
}

impl Servers {
    fn start(at: Option<SocketAddr>, timeout: Duration) -> Result<Self> {
        let seconds = Arc::new(Mutex::new(0));
        let shared = Arc::clone(&seconds);
        let clock: Clock = Arc::new(move || {
            let since = Duration::from_secs(*shared.lock().unwrap_or_else(PoisonError::into_inner));
            Moment { since, wall: SystemTime::UNIX_EPOCH + since }
        });
        let (changed, news) = channel();
        let listen = Listen { healthz: at, probed: Arc::new(|_, _| ()), pages: None };
        let health = Health::start(listen, timeout, clock, move || {
            // Nobody listens any more once the trial ends.
            let _ = changed.send(());
        })?;
        Ok(Servers { health: Some(health), clock: seconds, news })
    }

    fn health(&self) -> &Health {
        self.health.as_ref().expect("only the end takes it")
    }

    fn set_clock(&self, seconds: u64) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = seconds;
    }

    /// Makes the proxy healthy, or ill by a change that waits for too long.
    fn be(&self, family: Family, wanted: ProxyIs) {
        self.health().updated(family);
        if wanted == ProxyIs::Ill {
            self.health().queued(family);
            let now = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            self.set_clock(now + TIMEOUT.as_secs());
        }
    }

    fn wait(&self, what: &str, until: impl Fn(&Opened) -> bool) -> Result<()> {
        while !until(&self.health().opened()) {
            if self.news.recv_timeout(PATIENCE).is_err() {
                bail!("{what}: not so, but {:?}", self.health().opened());
            }
        }
        Ok(())
    }
}

impl Drop for Servers {
    /// The next trial finds the ports free.
    fn drop(&mut self) {
        self.health = None;
        while self.news.recv_timeout(PATIENCE).is_ok() {}
    }
}

fn service(name: &str) -> Result<ServiceName> {
    let (namespace, name) = name.split_once('/').with_context(|| format!("{name} is no namespace/name"))?;
    Ok(ServiceName::new(namespace, name))
}

fn family(name: &str) -> Result<Family> {
    match name {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        _ => bail!("{name} is no family"),
    }
}

fn health_port(port: u16, families: &[Family]) -> HealthPort {
    HealthPort { port, families: families.iter().copied().collect() }
}

/// Takes an object into the world, as the source does.
fn learn(world: &mut World, object: &Value) -> Result<()> {
    let converted = convert(object, None, "object");
    ensure!(converted.problems.is_empty() && converted.objects.len() == 1, "{:?}", converted.problems);
    for object in converted.objects {
        world.apply(object);
    }
    Ok(())
}

/// Seconds of the clock as kube-proxy writes them: scripts end within their first hour.
fn stamp(seconds: u64) -> Result<String> {
    ensure!(seconds < 3600, "{seconds} s is more than this understands");
    Ok(format!("1970-01-01T00:{:02}:{:02}Z", seconds / 60, seconds % 60))
}

fn ensure_json(response: &Response) -> Result<()> {
    for (name, value) in [("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff")] {
        ensure!(response.header(name) == Some(value), "{name} is not {value}: {response:?}");
    }
    let length = response.body.len().to_string();
    ensure!(response.header("Content-Length") == Some(length.as_str()), "the length is not {length}: {response:?}");
    Ok(())
}

/// A Service's answer, to the byte.
fn ensure_service(response: &Response, name: &ServiceName, local: usize, proxy_healthy: bool) -> Result<()> {
    ensure_json(response)?;
    let weight = local.to_string();
    ensure!(response.header("X-Load-Balancing-Endpoint-Weight") == Some(weight.as_str()), "{response:?}");
    let lines = [
        "{".to_owned(),
        "\t\"service\": {".to_owned(),
        format!("\t\t\"namespace\": \"{}\",", name.namespace),
        format!("\t\t\"name\": \"{}\"", name.name),
        "\t},".to_owned(),
        format!("\t\"localEndpoints\": {local},"),
        format!("\t\"serviceProxyHealthy\": {proxy_healthy}"),
        "}".to_owned(),
    ];
    let body = lines.join("\n");
    ensure!(response.body == body, "body {:?}, not {body:?}", response.body);
    let status = if local > 0 && proxy_healthy { 200 } else { 503 };
    ensure!(response.status == status, "{response:?}");
    Ok(())
}

fn ensure_closed(at: SocketAddr) -> Result<()> {
    ensure!(TcpStream::connect_timeout(&at, PATIENCE).is_err(), "{at} is still open");
    Ok(())
}
