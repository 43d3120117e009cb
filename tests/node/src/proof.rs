//! The proof: requests to every port of every Service, at every kind of address, in each family, from a pod, from a node, from
//! a pod that is itself a backend and from outside; what answered and as whom it saw the client, beside what netlb counted.
//!
//! The judgement is strict and knows no load balancer ([`frontends`] has the rules): every backend that is to answer must,
//! nobody else may, who is to be refused or dropped must be, each request is one flow in netlb's counters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::address::{self, Family};
use crate::agent::BackendRow;
use crate::cluster::{Cluster, PodKey};
use crate::frontends::{self, Frontend, Frontends, Kind, Origin, Outcome};
use crate::health::{self, HealthRow};
use crate::hostile;
use crate::node::{Client, TestNode};
use crate::topology::{self, PodNetwork};
use crate::wire::{ProbeResult, ProbeTarget, Transport};

/// The pod that requests come from; put it among the manifests of a run that is to be proved.
pub const CLIENT_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default}
spec: {containers: [{name: client}]}
";

/// The client pod's key.
#[must_use]
pub fn client_pod() -> PodKey {
    PodKey::parse("default/client")
}

/// Requests for each backend at the least and, while a backend has not answered, at the most. That one of n backends is
/// missed by chance in 40 n requests has a probability below n e^-40.
const PER_BACKEND: (u32, u32) = (10, 40);
/// How long one request may take.
const TIMEOUT_MS: u64 = 5000;
/// How long nothing must come back until a request counts as dropped.
const SILENCE_MS: u64 = 300;

/// The whole proof, as written by `--report`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything is as it should be.
    pub ok: bool,
    /// What is not, a line each.
    pub failures: Vec<String>,
    /// What was asked from where.
    pub clients: Vec<ClientReport>,
    /// What nodes said to load balancers that ask whether they have endpoints.
    pub health_checks: Vec<HealthRow>,
    /// Services without an address of their own.
    pub left_to_dns: Vec<String>,
    /// What cannot be tried here, with the reason.
    pub not_tried: Vec<String>,
    /// Objects that netlb says it does not enforce.
    pub not_enforced: Vec<String>,
    /// Problems that netlb found in its source.
    pub problems: Vec<serde_json::Value>,
    /// The same requests with the other value of `--accel`, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
}

/// A second proof beside the first, and in what they differ.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The first proof's `--accel`.
    pub accel: String,
    /// The second's.
    pub with: String,
    /// Rows that stand in both.
    pub rows: usize,
    /// Backends, refusals or sources that differ, a line each.
    pub differences: Vec<String>,
    /// What the second saw.
    pub clients: Vec<ClientReport>,
}

/// What one kind of client saw.
#[derive(Clone, Debug, Serialize)]
pub struct ClientReport {
    /// `pod`, `node`, `backend`, `outside` or `far`.
    pub client: &'static str,
    /// TCP and UDP packets that the nodes' FORWARD hooks saw meanwhile: which road the requests took, told by the host and not by
    /// netlb. None where the host cannot see them, because they are bridged past netfilter.
    pub forwarded: Option<u64>,
    /// A row a frontend, and for requests from outside a row a node that they came in by.
    pub requests: Vec<Row>,
}

/// What became of the requests to one frontend.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Where the requests came from: a pod's or a node's name, `outside` or `far`.
    pub from: String,
    /// The node that saw them first.
    pub via: String,
    /// `namespace/name`.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: Kind,
    /// The port that was asked.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Transport,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// The address that was asked.
    pub address: IpAddr,
    /// What is right: `answered`, `refused` or `dropped`.
    pub expected: &'static str,
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub answered: u32,
    /// Requests refused, which is right for a Service without endpoints.
    pub refused: u32,
    /// Requests that nothing came back to, which is right where policy forbids them.
    pub dropped: u32,
    /// Flows that netlb counted twice, because their first packet was turned away by the backend's kernel and sent again.
    pub reopened: u64,
    /// Other outcomes, and how often.
    pub errors: BTreeMap<String, u32>,
    /// Median of the answered requests' time, in microseconds.
    pub p50_us: Option<u32>,
    /// 99th percentile of the same.
    pub p99_us: Option<u32>,
    /// A row a backend: those expected, and whoever else answered.
    pub backends: Vec<BackendReport>,
    /// Whether a client is to stay with its backend.
    #[serde(skip)]
    pub affinity: bool,
    /// Whether all is right with this frontend.
    pub ok: bool,
}

/// What one backend got.
#[derive(Clone, Debug, Serialize)]
pub struct BackendReport {
    /// The backend's address and port.
    pub address: SocketAddr,
    /// The name it answered with.
    pub pod: Option<String>,
    /// Requests that it answered.
    pub answered: u32,
    /// As whom it saw the client.
    pub sources: BTreeSet<IpAddr>,
    /// New flows that netlb counted to it for this Service port meanwhile; none if netlb could not be asked.
    pub netlb_flows: Option<i64>,
}

/// A frontend, who asks it, and the node that sees the requests first.
struct Question<'a> {
    frontend: &'a Frontend,
    client: Client,
    origin: Origin,
    at: u8,
    outcome: Outcome,
}

/// Asks and judges. `progress` is told what is being done.
///
/// # Errors
/// When a probe cannot be started or the run was stopped; what is wrong with answers is in the report.
pub fn prove(node: &TestNode, mut progress: impl FnMut(&str)) -> Result<Report> {
    let cluster = node.cluster();
    let Frontends { all, health_checks, left_to_dns, not_tried } = frontends::frontends(&cluster);
    let mut report = Report { left_to_dns, not_tried, ..Report::default() };
    if all.is_empty() {
        report.failures.push("there is no Service to try; name manifests with a Service by --manifests".to_owned());
    }
    let mut prover =
        Prover { node, frontends: &all, clients: Vec::new(), failures: Vec::new(), counted: None, reopened: 0 };
    prover.reopened = prover.reopened_by_now();
    prover.ask_from_inside(&cluster, &mut progress)?;
    prover.ask_from_outside(&mut progress)?;
    report.failures.extend(prover.failures);
    report.clients = prover.clients;
    report.failures.extend(wandering(&report.clients));

    report.health_checks = health::ask(node, &health_checks)?;
    report.failures.extend(report.health_checks.iter().filter_map(HealthRow::wrong));
    for agent in node.agents() {
        if let Some(status) = agent.status()? {
            let list = |field: &str| status.get(field).and_then(|value| value.as_array()).cloned().unwrap_or_default();
            report
                .not_enforced
                .extend(list("not_enforced").iter().map(|name| name.as_str().unwrap_or_default().to_owned()));
            for problem in list("problems") {
                if !report.problems.contains(&problem) {
                    report.problems.push(problem);
                }
            }
        }
    }
    report.not_enforced.sort();
    report.not_enforced.dedup();
    report.ok = report.failures.is_empty();
    Ok(report)
}

struct Prover<'a> {
    node: &'a TestNode,
    frontends: &'a [Frontend],
    clients: Vec<ClientReport>,
    failures: Vec<String>,
    /// netlb's counters after the last round: nobody else sends anything.
    counted: Option<Flows>,
    /// Flows that were opened a second time, as far as they are accounted for.
    reopened: u64,
}

impl Prover<'_> {
    fn ask_from_inside(&mut self, cluster: &Cluster, progress: &mut impl FnMut(&str)) -> Result<()> {
        let pods: BTreeMap<IpAddr, PodKey> = cluster
            .pods()
            .iter()
            .flat_map(|(key, pod)| pod.addresses.both().map(|address| (address, key.clone())))
            .collect();
        let place = |key: &PodKey| -> Result<(u8, Client, Origin)> {
            let pod = cluster.pods().get(key).with_context(|| format!("there is no pod {key} to ask from"))?;
            // A pod on its node's network is, for the network, the node.
            let origin = if pod.host_network { Origin::Node(pod.node) } else { Origin::Pod(pod.node, pod.addresses) };
            Ok((pod.node, Client::Pod(key.clone()), origin))
        };
        let pod = place(&client_pod())?;
        let host = (1, Client::Node(1), Origin::Node(1));
        for (name, what, (own, client, origin)) in [("pod", "from a pod", pod), ("node", "from the node", host)] {
            progress(what);
            self.begin(name)?;
            for kind in Kind::ALL {
                self.ask(name, |frontend| {
                    let here = frontend.kind == kind && frontend.node.is_none_or(|node| node == own);
                    here.then(|| (client.clone(), origin.clone(), own))
                })?;
            }
            self.ask(name, |frontend| {
                let other = frontend.node.filter(|node| *node == own % cluster.nodes() + 1 && *node != own)?;
                Some((client.clone(), origin.clone(), other))
            })?;
            self.end()?;
        }

        progress("from a pod that is itself a backend");
        self.begin("backend")?;
        for kind in Kind::ALL {
            self.ask("backend", |frontend| {
                let (own, client, origin) = place(pods.get(&frontend.backends().first()?.ip())?).ok()?;
                let here = frontend.kind == kind && frontend.node.is_none_or(|node| node == own);
                here.then_some((client, origin, own))
            })?;
        }
        self.end()
    }

    /// In by every node: the one whose address it is, or the one that the other addresses are routed to.
    fn ask_from_outside(&mut self, progress: &mut impl FnMut(&str)) -> Result<()> {
        let far = [Kind::NodePort, Kind::LoadBalancer];
        for (name, client, addresses, kinds) in [
            ("outside", Client::Outside, address::OUTSIDE, Kind::ALL.as_slice()),
            ("far", Client::Far, address::FAR, far.as_slice()),
        ] {
            progress(if name == "far" { "from a host far outside" } else { "from outside" });
            self.begin(name)?;
            for node in self.node.nodes() {
                let at = node.number;
                self.node.outside().route_to(at)?;
                for kind in kinds {
                    self.ask(name, |frontend| {
                        let here = frontend.kind == *kind && frontend.node.is_none_or(|node| node == at);
                        here.then(|| (client.clone(), Origin::Outside(addresses), at))
                    })?;
                }
            }
            self.end()?;
        }
        Ok(())
    }

    fn reopened_by_now(&self) -> u64 {
        // An agent that cannot be asked has reopened nothing: what its flows counters say is then not excused.
        self.node.agents().iter().map(|agent| agent.counter("reopened").unwrap_or_default()).sum()
    }

    /// How many of `excess` flows were opened a second time. The backend's kernel keeps a connection's ports for a minute after its end; a
    /// new one that the node's address stands in for may meet them by chance. It is turned away, and tries again at once.
    fn account_for(&mut self, excess: u64) -> u64 {
        if excess == 0 {
            return 0;
        }
        let excused = self.reopened_by_now().saturating_sub(self.reopened).min(excess);
        self.reopened += excused;
        excused
    }

    /// Begins a client's part of the report.
    fn begin(&mut self, client: &'static str) -> Result<()> {
        self.clients.push(ClientReport { client, forwarded: forwarded(self.node)?, requests: Vec::new() });
        Ok(())
    }

    /// Ends it: the host's packets are those since its begin.
    fn end(&mut self) -> Result<()> {
        let now = forwarded(self.node)?;
        if let Some(last) = self.clients.last_mut() {
            last.forwarded = now.zip(last.forwarded).map(|(after, before)| after.saturating_sub(before));
        }
        Ok(())
    }

    /// Asks the frontends that `choose` knows a client for. netlb counts by Service port, not by frontend: one round must
    /// not ask two frontends of one port and family.
    fn ask(&mut self, name: &str, choose: impl Fn(&Frontend) -> Option<(Client, Origin, u8)>) -> Result<()> {
        let questions: Vec<Question<'_>> = self
            .frontends
            .iter()
            .filter_map(|frontend| {
                let (client, origin, at) = choose(frontend)?;
                // Nothing would translate it: a raw socket does not pass the connect() hooks, and no pod sends it.
                if frontend.transport == Transport::Sctp && matches!(origin, Origin::Node(_)) {
                    return None;
                }
                let outcome = frontend.outcome(&origin, at);
                Some(Question { frontend, client, origin, at, outcome })
            })
            .collect();
        if questions.is_empty() {
            return Ok(());
        }
        let mut by_client: Vec<(&Client, Vec<ProbeTarget>)> = Vec::new();
        for (id, question) in questions.iter().enumerate() {
            match by_client.iter_mut().find(|(other, _)| **other == question.client) {
                Some((_, targets)) => targets.push(target(id, question)),
                None => by_client.push((&question.client, vec![target(id, question)])),
            }
        }
        let before = self.counted.take().map_or_else(|| counters(self.node), Ok);
        let mut results: Vec<ProbeResult> = Vec::new();
        for (client, targets) in by_client {
            results.extend(self.node.probe(client, targets)?);
        }
        let after = counters(self.node);
        results.sort_by_key(|result| result.id);

        let flows = match (before, after) {
            (Ok(before), Ok(after)) => {
                let flows = difference(&before, &after);
                self.counted = Some(after);
                Some(flows)
            }
            (Err(error), _) | (_, Err(error)) => {
                self.failures.push(format!("from {name}: netlb's counters cannot be read: {error:#}"));
                None
            }
        };
        for result in results {
            let Some(question) = questions.get(result.id) else { continue };
            let mut row = row(question, &result, flows.as_ref());
            row.reopened = self.account_for(excess(&row));
            let wrong = judge(question, &row);
            row.ok = wrong.is_empty();
            if !wrong.is_empty() {
                let by = if row.from == row.via { String::new() } else { format!(" by {}", row.via) };
                self.failures.push(format!(
                    "{} from {name} ({}{by}): {}",
                    question.frontend,
                    row.from,
                    wrong.join("; ")
                ));
            }
            if let Some(last) = self.clients.last_mut() {
                last.requests.push(row);
            }
        }
        Ok(())
    }
}

fn target(id: usize, question: &Question<'_>) -> ProbeTarget {
    let backends = match &question.outcome {
        Outcome::Answered(backends) => backends.clone(),
        Outcome::Refused | Outcome::Dropped => BTreeSet::new(),
    };
    let count = u32::try_from(backends.len()).unwrap_or(u32::MAX).max(1);
    let silence = question.outcome == Outcome::Dropped;
    ProbeTarget {
        id,
        address: question.frontend.address,
        transport: question.frontend.transport,
        refusal: question.outcome == Outcome::Refused,
        silence,
        at_least: match question.outcome {
            Outcome::Answered(_) => count.saturating_mul(PER_BACKEND.0),
            Outcome::Refused => 4,
            Outcome::Dropped => 2,
        },
        at_most: count.saturating_mul(PER_BACKEND.1),
        expect: if question.frontend.affinity { BTreeSet::new() } else { backends },
        timeout_ms: if silence { SILENCE_MS } else { TIMEOUT_MS },
    }
}

/// Packets in all nodes' FORWARD hooks, where they can be seen.
fn forwarded(node: &TestNode) -> Result<Option<u64>> {
    let wires = node.wires();
    if wires.pod_network == PodNetwork::Bridge && !wires.bridge_netfilter {
        return Ok(None);
    }
    let mut sum = 0;
    for node in node.nodes() {
        sum += hostile::forwarded(node.net())?;
    }
    Ok(Some(sum))
}

/// What is wrong with the road that requests took, if `delivery` asked for one. Between nodes there is only the stack. Not to
/// be asked of a run whose pods' sockets are translated (`--accel socket`): there netlb has no packet to deliver.
#[must_use]
pub fn wrong_road(delivery: &str, nodes: usize, clients: &[ClientReport]) -> Vec<String> {
    let mut wrong = Vec::new();
    for ClientReport { client, forwarded, .. } in clients {
        match (delivery, *client, *forwarded) {
            // A backend's requests to itself never take the stack, and with one backend there are no others.
            ("stack", "pod", Some(0)) => {
                wrong.push(format!("from {client}: --delivery stack, but the host forwarded no packet"));
            }
            // The node's own clients are translated at connect(), and reach pods without being forwarded.
            ("redirect", "pod" | "backend", Some(packets @ 1..)) if nodes == 1 => {
                wrong.push(format!("from {client}: --delivery redirect, but the host forwarded {packets} packets"));
            }
            _ => {}
        }
    }
    wrong
}

/// Flows by Service port and backend.
type Flows = BTreeMap<(String, SocketAddr, String), i64>;

fn counters(node: &TestNode) -> Result<Flows> {
    let agents = node.agents();
    anyhow::ensure!(!agents.is_empty(), "no agent runs");
    let mut flows = Flows::new();
    for agent in agents {
        for BackendRow { service, address, port, protocol, flows: count, .. } in agent.backends()? {
            *flows.entry((service, SocketAddr::new(address, port), protocol)).or_default() += i64::try_from(count)?;
        }
    }
    Ok(flows)
}

fn difference(before: &Flows, after: &Flows) -> Flows {
    after.iter().map(|(key, count)| (key.clone(), count - before.get(key).copied().unwrap_or(0))).collect()
}

fn row(question: &Question<'_>, result: &ProbeResult, flows: Option<&Flows>) -> Row {
    let frontend = question.frontend;
    let mut addresses: BTreeSet<SocketAddr> = result.answered.keys().copied().collect();
    let expected = match &question.outcome {
        Outcome::Answered(backends) => {
            addresses.extend(backends);
            "answered"
        }
        Outcome::Refused => "refused",
        Outcome::Dropped => "dropped",
    };
    let backends = addresses
        .into_iter()
        .map(|address| BackendReport {
            address,
            pod: result.pods.get(&address).cloned(),
            answered: result.answered.get(&address).copied().unwrap_or(0),
            sources: result.sources.get(&address).cloned().unwrap_or_default(),
            netlb_flows: flows.map(|flows| counted(flows, frontend, address)),
        })
        .collect();
    let mut latencies = result.latencies_us.clone();
    latencies.sort_unstable();
    Row {
        from: question.client.name(),
        via: topology::name(question.at),
        service: frontend.service.clone(),
        port_name: frontend.port_name.clone(),
        kind: frontend.kind,
        port: frontend.address.port(),
        protocol: frontend.transport,
        family: frontend.family(),
        address: frontend.address.ip(),
        expected,
        sent: result.sent,
        answered: crate::probe::total(&result.answered),
        refused: result.refused,
        dropped: result.dropped,
        reopened: 0,
        errors: result.errors.clone(),
        p50_us: percentile(&latencies, 50),
        p99_us: percentile(&latencies, 99),
        backends,
        affinity: frontend.affinity,
        ok: false,
    }
}

/// What netlb counted for one backend of one Service port. A port without a name may be written with or without colon.
fn counted(flows: &Flows, frontend: &Frontend, address: SocketAddr) -> i64 {
    let named = format!("{}:{}", frontend.service, frontend.port_name);
    let words = if frontend.port_name.is_empty() { vec![frontend.service.clone(), named] } else { vec![named] };
    words.into_iter().filter_map(|service| flows.get(&(service, address, frontend.transport.word().to_owned()))).sum()
}

/// How many flows netlb counted beyond the requests that were answered.
fn excess(row: &Row) -> u64 {
    let backends = row.backends.iter();
    let more =
        backends.map(|backend| backend.netlb_flows.map_or(0, |flows| flows - i64::from(backend.answered)).max(0));
    u64::try_from(more.sum::<i64>()).unwrap_or_default()
}

/// Everything that is wrong with a frontend's answers.
fn judge(question: &Question<'_>, row: &Row) -> Vec<String> {
    let mut wrong: Vec<String> = row.errors.iter().map(|(what, times)| format!("{times} × {what}")).collect();
    let expected = match &question.outcome {
        Outcome::Answered(backends) => backends,
        Outcome::Refused => {
            if row.refused != row.sent {
                let others = row.sent - row.refused;
                wrong.push(format!("it has no endpoints, and {others} of {} requests were not refused", row.sent));
            }
            return wrong;
        }
        Outcome::Dropped => {
            if row.dropped != row.sent {
                let others = row.sent - row.dropped;
                wrong.push(format!("policy forbids it, and {others} of {} requests were not dropped", row.sent));
            }
            return wrong;
        }
    };
    if row.answered == 0 {
        wrong.push("nobody answered".to_owned());
        return wrong;
    }
    let mut reopened = i64::try_from(row.reopened).unwrap_or_default();
    for backend in &row.backends {
        let is_expected = expected.contains(&backend.address);
        if !is_expected && backend.answered > 0 {
            wrong.push(format!("{} answered, which is not its backend", backend.address));
        }
        if is_expected && backend.answered == 0 && !row.affinity {
            wrong.push(format!("backend {} did not answer any of {} requests", backend.address, row.sent));
        }
        let more = backend.netlb_flows.map_or(0, |flows| flows - i64::from(backend.answered));
        let excused = more.clamp(0, reopened);
        reopened -= excused;
        if let Some(flows) = backend.netlb_flows
            && more != excused
        {
            wrong.push(format!(
                "backend {} answered {} requests and netlb counted {flows}",
                backend.address, backend.answered
            ));
        }
        let right = question.frontend.sources(&question.origin, question.at, backend.address);
        let strange: Vec<String> = backend.sources.difference(&right).map(ToString::to_string).collect();
        if !strange.is_empty() {
            let right: Vec<String> = right.iter().map(ToString::to_string).collect();
            let (strange, right) = (strange.join(", "), right.join(" or "));
            wrong.push(format!("backend {} saw the client as {strange} instead of {right}", backend.address));
        }
    }
    let answering = row.backends.iter().filter(|backend| backend.answered > 0).count();
    if row.affinity && answering > 1 {
        wrong.push(format!("one client was sent to {answering} backends in spite of its ClientIP affinity"));
    }
    wrong
}

/// Clients that did not stay with one backend over all the addresses of a Service port: affinity is the port's, not the address's.
fn wandering(clients: &[ClientReport]) -> Vec<String> {
    let mut seen: BTreeMap<_, (BTreeSet<SocketAddr>, BTreeSet<Kind>)> = BTreeMap::new();
    for row in clients.iter().flat_map(|client| &client.requests).filter(|row| row.affinity && row.ok) {
        let key = (&row.from, &row.via, &row.service, &row.port_name, row.family, row.protocol);
        let (backends, kinds) = seen.entry(key).or_default();
        backends.extend(row.backends.iter().filter(|backend| backend.answered > 0).map(|backend| backend.address));
        kinds.insert(row.kind);
    }
    let wandered = seen.into_iter().filter(|(_, (backends, _))| backends.len() > 1);
    wandered
        .map(|((from, via, service, port_name, family, _), (backends, kinds))| {
            let kinds: Vec<_> = kinds.into_iter().map(Kind::word).collect();
            format!(
                "{service}:{port_name} ({}) from {from} by {via}: {} backends by {}, in spite of its ClientIP affinity",
                family.word(),
                backends.len(),
                kinds.join(", ")
            )
        })
        .collect()
}

/// In what two proofs of the same cluster differ: backends that answered, refusals, drops, and whom backends saw. Which backend a
/// client with affinity stays with is chance.
#[must_use]
pub fn compare(accel: &str, first: &[ClientReport], with: &str, second: &[ClientReport]) -> Compared {
    let rows = |clients: &[ClientReport]| -> BTreeMap<String, String> {
        let all = clients.iter().flat_map(|client| client.requests.iter().map(move |row| (client.client, row)));
        all.map(|(client, row)| {
            let Row { from, via, service, port_name, kind, protocol, family, .. } = row;
            let key = format!(
                "{service}:{port_name} ({}, {}, {}) from {client} ({from} by {via})",
                protocol.word(),
                family.word(),
                kind.word()
            );
            (key, seen(row))
        })
        .collect()
    };
    let (before, after) = (rows(first), rows(second));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut differences = Vec::new();
    for key in &keys {
        let show = |rows: &BTreeMap<String, String>| rows.get(*key).cloned().unwrap_or_else(|| "not asked".to_owned());
        if before.get(*key) != after.get(*key) {
            differences.push(format!("{key}: {accel}: {}; {with}: {}", show(&before), show(&after)));
        }
    }
    let rows = keys.iter().filter(|key| before.contains_key(**key) && after.contains_key(**key)).count();
    Compared { accel: accel.to_owned(), with: with.to_owned(), rows, differences, clients: second.to_vec() }
}

/// What a row shows of the Service, without numbers that chance decides.
fn seen(row: &Row) -> String {
    let mut parts = Vec::new();
    if row.affinity && row.answered > 0 {
        parts.push("one backend".to_owned());
    } else {
        parts.extend(row.backends.iter().filter(|backend| backend.answered > 0).map(|backend| {
            let sources: Vec<String> = backend.sources.iter().map(ToString::to_string).collect();
            format!("{} saw {}", backend.address, sources.join(" and "))
        }));
    }
    for (what, count) in [("refused", row.refused), ("dropped", row.dropped)] {
        if count > 0 {
            parts.push(what.to_owned());
        }
    }
    parts.extend(row.errors.keys().cloned());
    parts.join(", ")
}

/// The smallest value that `percent` of all do not exceed; `sorted` is.
fn percentile(sorted: &[u32], percent: usize) -> Option<u32> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
