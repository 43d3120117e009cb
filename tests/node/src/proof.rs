//! The proof: requests to every port of every Service, in each family, from a pod, from a node and from a pod that is
//! itself a backend; what answered, beside what netlb counted.
//!
//! The judgement is strict and knows no load balancer: every ready backend must answer, nobody else may, each request is
//! one flow in netlb's counters, and a Service without endpoints refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde::Serialize;

use crate::address::Family;
use crate::agent::BackendRow;
use crate::cluster::PodKey;
use crate::frontends::{self, Frontend, Frontends};
use crate::hostile;
use crate::node::{Client, TestNode};
use crate::topology::PodNetwork;
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

/// The whole proof, as written by `--report`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything is as it should be.
    pub ok: bool,
    /// What is not, a line each.
    pub failures: Vec<String>,
    /// What was asked from where.
    pub clients: Vec<ClientReport>,
    /// Services without an address of their own.
    pub left_to_dns: Vec<String>,
    /// What cannot be tried here, with the reason.
    pub not_tried: Vec<String>,
    /// Objects that netlb says it does not enforce.
    pub not_enforced: Vec<String>,
    /// Problems that netlb found in its source.
    pub problems: Vec<serde_json::Value>,
}

/// What one kind of client saw.
#[derive(Clone, Debug, Serialize)]
pub struct ClientReport {
    /// `pod`, `node` or `backend`.
    pub client: &'static str,
    /// TCP and UDP packets that the nodes' FORWARD hooks saw meanwhile: which road the requests took, told by the host and not by
    /// netlb. None where the host cannot see them, because they are bridged past netfilter.
    pub forwarded: Option<u64>,
    /// A row a frontend.
    pub requests: Vec<Row>,
}

/// What became of the requests to one frontend.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Where the requests came from: a pod's or a node's name.
    pub from: String,
    /// `namespace/name`.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// The Service's port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: Transport,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// The Service's address.
    pub address: IpAddr,
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub answered: u32,
    /// Requests refused, which is right for a Service without endpoints.
    pub refused: u32,
    /// Other outcomes, and how often.
    pub errors: BTreeMap<String, u32>,
    /// Median of the answered requests' time, in microseconds.
    pub p50_us: Option<u32>,
    /// 99th percentile of the same.
    pub p99_us: Option<u32>,
    /// A row a backend: those expected, and whoever else answered.
    pub backends: Vec<BackendReport>,
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
    /// New flows that netlb counted to it for this Service port meanwhile; none if netlb could not be asked.
    pub netlb_flows: Option<i64>,
}

/// Asks and judges. `progress` is told what is being done.
///
/// # Errors
/// When a probe cannot be started or the run was stopped; what is wrong with answers is in the report.
pub fn prove(node: &TestNode, mut progress: impl FnMut(&str)) -> Result<Report> {
    let cluster = node.cluster();
    let Frontends { all, left_to_dns, not_tried } = frontends::frontends(&cluster);
    let mut report = Report { left_to_dns, not_tried, ..Report::default() };
    if all.is_empty() {
        report.failures.push("there is no Service to try; name manifests with a Service by --manifests".to_owned());
    }

    let pods: BTreeMap<IpAddr, PodKey> = cluster
        .pods()
        .iter()
        .flat_map(|(key, pod)| pod.addresses.both().map(|address| (address, key.clone())))
        .collect();
    let own_backend = |frontend: &Frontend| Some(Client::Pod(pods.get(&frontend.backends.first()?.ip())?.clone()));
    progress("from a pod");
    report.clients.push(ask(node, &all, "pod", |_| Some(Client::Pod(client_pod())), &mut report.failures)?);
    progress("from the node");
    report.clients.push(ask(node, &all, "node", |_| Some(Client::Node(1)), &mut report.failures)?);
    progress("from a pod that is itself a backend");
    report.clients.push(ask(node, &all, "backend", own_backend, &mut report.failures)?);
    for agent in node.agents() {
        if let Some(status) = agent.status()? {
            let list = |field: &str| status.get(field).and_then(|value| value.as_array()).cloned().unwrap_or_default();
            report
                .not_enforced
                .extend(list("not_enforced").iter().map(|name| name.as_str().unwrap_or_default().to_owned()));
            report.problems.extend(list("problems"));
        }
    }
    report.not_enforced.sort();
    report.not_enforced.dedup();
    report.ok = report.failures.is_empty();
    Ok(report)
}

fn ask(
    node: &TestNode,
    frontends: &[Frontend],
    name: &'static str,
    choose: impl Fn(&Frontend) -> Option<Client>,
    failures: &mut Vec<String>,
) -> Result<ClientReport> {
    let mut by_client: Vec<(Client, Vec<ProbeTarget>)> = Vec::new();
    for (id, frontend) in frontends.iter().enumerate() {
        let Some(client) = choose(frontend) else { continue };
        match by_client.iter_mut().find(|(other, _)| *other == client) {
            Some((_, targets)) => targets.push(target(id, frontend)),
            None => by_client.push((client, vec![target(id, frontend)])),
        }
    }
    let forwarded_before = forwarded(node)?;
    let before = counters(node);
    let mut results: Vec<(Client, ProbeResult)> = Vec::new();
    for (client, targets) in by_client {
        let answers = node.probe(&client, targets)?;
        results.extend(answers.into_iter().map(|answer| (client.clone(), answer)));
    }
    let after = counters(node);
    let forwarded = forwarded(node)?.zip(forwarded_before).map(|(after, before)| after.saturating_sub(before));
    results.sort_by_key(|(_, result)| result.id);

    let flows = match (before, after) {
        (Ok(before), Ok(after)) => Some(difference(&before, &after)),
        (Err(error), _) | (_, Err(error)) => {
            failures.push(format!("from {name}: netlb's counters cannot be read: {error:#}"));
            None
        }
    };
    let mut requests = Vec::new();
    for (client, result) in results {
        let Some(frontend) = frontends.get(result.id) else { continue };
        let mut row = row(&client, frontend, &result, flows.as_ref());
        let wrong = judge(frontend, &row);
        row.ok = wrong.is_empty();
        if !wrong.is_empty() {
            failures.push(format!("{frontend} from {name} ({}): {}", row.from, wrong.join("; ")));
        }
        requests.push(row);
    }
    Ok(ClientReport { client: name, forwarded, requests })
}

fn target(id: usize, frontend: &Frontend) -> ProbeTarget {
    let count = u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX).max(1);
    let refusal = frontend.backends.is_empty();
    ProbeTarget {
        id,
        address: frontend.address,
        transport: frontend.transport,
        expect: if frontend.affinity { BTreeSet::new() } else { frontend.backends.clone() },
        refusal,
        at_least: if refusal { 4 } else { count.saturating_mul(PER_BACKEND.0) },
        at_most: count.saturating_mul(PER_BACKEND.1),
        timeout_ms: TIMEOUT_MS,
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

fn row(client: &Client, frontend: &Frontend, result: &ProbeResult, flows: Option<&Flows>) -> Row {
    let mut addresses: BTreeSet<SocketAddr> = frontend.backends.clone();
    addresses.extend(result.answered.keys());
    let backends = addresses
        .into_iter()
        .map(|address| BackendReport {
            address,
            pod: result.pods.get(&address).cloned(),
            answered: result.answered.get(&address).copied().unwrap_or(0),
            netlb_flows: flows.map(|flows| counted(flows, frontend, address)),
        })
        .collect();
    let mut latencies = result.latencies_us.clone();
    latencies.sort_unstable();
    Row {
        from: match client {
            Client::Pod(key) => key.to_string(),
            Client::Node(number) => crate::topology::name(*number),
            Client::Outside => "outside".to_owned(),
        },
        service: frontend.service.clone(),
        port_name: frontend.port_name.clone(),
        port: frontend.address.port(),
        protocol: frontend.transport,
        family: frontend.family(),
        address: frontend.address.ip(),
        sent: result.sent,
        answered: crate::probe::total(&result.answered),
        refused: result.refused,
        errors: result.errors.clone(),
        p50_us: percentile(&latencies, 50),
        p99_us: percentile(&latencies, 99),
        backends,
        ok: false,
    }
}

/// What netlb counted for one backend of one Service port. A port without a name may be written with or without colon.
fn counted(flows: &Flows, frontend: &Frontend, address: SocketAddr) -> i64 {
    let named = format!("{}:{}", frontend.service, frontend.port_name);
    let words = if frontend.port_name.is_empty() { vec![frontend.service.clone(), named] } else { vec![named] };
    words.into_iter().filter_map(|service| flows.get(&(service, address, frontend.transport.word().to_owned()))).sum()
}

/// Everything that is wrong with a frontend's answers.
fn judge(frontend: &Frontend, row: &Row) -> Vec<String> {
    let mut wrong: Vec<String> = row.errors.iter().map(|(what, times)| format!("{times} × {what}")).collect();
    if frontend.backends.is_empty() {
        if row.refused != row.sent {
            wrong.push(format!(
                "it has no endpoints, and {} of {} requests were not refused",
                row.sent - row.refused,
                row.sent
            ));
        }
        return wrong;
    }
    if row.answered == 0 {
        wrong.push("nobody answered".to_owned());
        return wrong;
    }
    for backend in &row.backends {
        let expected = frontend.backends.contains(&backend.address);
        if !expected && backend.answered > 0 {
            wrong.push(format!("{} answered, which is not its backend", backend.address));
        }
        if expected && backend.answered == 0 && !frontend.affinity {
            wrong.push(format!("backend {} did not answer any of {} requests", backend.address, row.sent));
        }
        if let Some(flows) = backend.netlb_flows
            && flows != i64::from(backend.answered)
        {
            wrong.push(format!(
                "backend {} answered {} requests and netlb counted {flows}",
                backend.address, backend.answered
            ));
        }
    }
    let answering = row.backends.iter().filter(|backend| backend.answered > 0).count();
    if frontend.affinity && answering > 1 {
        wrong.push(format!("one client was sent to {answering} backends in spite of its ClientIP affinity"));
    }
    wrong
}

/// The smallest value that `percent` of all do not exceed; `sorted` is.
fn percentile(sorted: &[u32], percent: usize) -> Option<u32> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(backends: &[&str], affinity: bool) -> Frontend {
        Frontend {
            service: "default/web".into(),
            port_name: "http".into(),
            address: "10.96.1.0:80".parse().unwrap(),
            transport: Transport::Tcp,
            affinity,
            backends: backends.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn judged(frontend: &Frontend, answers: &[(&str, u32)], refused: u32, flows: &[(&str, i64)]) -> Vec<String> {
        let answered: BTreeMap<SocketAddr, u32> = answers.iter().map(|(text, n)| (text.parse().unwrap(), *n)).collect();
        let result =
            ProbeResult { sent: answered.values().sum::<u32>() + refused, refused, answered, ..ProbeResult::default() };
        let flows: Flows = flows
            .iter()
            .map(|(text, n)| (("default/web:http".to_owned(), text.parse().unwrap(), "TCP".to_owned()), *n))
            .collect();
        judge(frontend, &row(&Client::Node(1), frontend, &result, Some(&flows)))
    }

    const A: &str = "10.244.1.2:8080";
    const B: &str = "10.244.1.3:8080";

    #[test]
    fn right_answers_are_right() {
        assert_eq!(judged(&frontend(&[A, B], false), &[(A, 9), (B, 11)], 0, &[(A, 9), (B, 11)]), Vec::<String>::new());
        assert_eq!(judged(&frontend(&[A, B], true), &[(B, 20)], 0, &[(B, 20)]), Vec::<String>::new());
        assert_eq!(judged(&frontend(&[], false), &[], 4, &[]), Vec::<String>::new());
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        let missing = judged(&frontend(&[A, B], false), &[(A, 20)], 0, &[(A, 20)]);
        assert_eq!(missing, ["backend 10.244.1.3:8080 did not answer any of 20 requests"]);
        let stranger = judged(&frontend(&[A], false), &[(A, 5), (B, 5)], 0, &[(A, 5), (B, 5)]);
        assert_eq!(stranger, ["10.244.1.3:8080 answered, which is not its backend"]);
        let uncounted = judged(&frontend(&[A], false), &[(A, 10)], 0, &[(A, 9)]);
        assert_eq!(uncounted, ["backend 10.244.1.2:8080 answered 10 requests and netlb counted 9"]);
        let wandering = judged(&frontend(&[A, B], true), &[(A, 5), (B, 5)], 0, &[(A, 5), (B, 5)]);
        assert_eq!(wandering, ["one client was sent to 2 backends in spite of its ClientIP affinity"]);
        let silent = judged(&frontend(&[A], true), &[], 0, &[]);
        assert_eq!(silent, ["nobody answered"]);
        let served = judged(&frontend(&[], false), &[(A, 2)], 2, &[]);
        assert_eq!(served, ["it has no endpoints, and 2 of 4 requests were not refused"]);
    }

    #[test]
    fn the_road_is_judged_by_what_the_host_saw() {
        let judge = |delivery, nodes, client, forwarded| {
            wrong_road(delivery, nodes, &[ClientReport { client, forwarded, requests: Vec::new() }])
        };
        let right = Vec::<String>::new();
        assert_eq!(judge("stack", 1, "pod", Some(0)), ["from pod: --delivery stack, but the host forwarded no packet"]);
        assert_eq!(judge("stack", 1, "pod", Some(7)), right);
        assert_eq!(judge("stack", 1, "pod", None), right);
        assert_eq!(judge("stack", 1, "backend", Some(0)), right);
        for client in ["pod", "backend"] {
            let strayed = format!("from {client}: --delivery redirect, but the host forwarded 7 packets");
            assert_eq!(judge("redirect", 1, client, Some(7)), [strayed]);
            assert_eq!(judge("redirect", 1, client, Some(0)), right);
            assert_eq!(judge("redirect", 2, client, Some(7)), right);
            assert_eq!(judge("auto", 1, client, Some(7)), right);
        }
        assert_eq!(judge("redirect", 1, "node", Some(7)), right);
    }

    #[test]
    fn percentiles_by_rank() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), Some(100));
        assert_eq!(percentile(&values, 99), Some(198));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 99), None);
    }
}
