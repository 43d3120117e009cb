//! The judgement by itself: answers in, complaints out.

use super::*;

fn frontend(backends: &[&str], affinity: bool) -> Frontend {
    let endpoint = |text: &&str| frontends::Endpoint {
        address: text.parse().unwrap(),
        node: Some(1),
        ready: true,
        leaving: false,
        for_zones: BTreeSet::new(),
        for_nodes: BTreeSet::new(),
    };
    Frontend {
        service: "default/web".into(),
        port_name: "http".into(),
        kind: Kind::ClusterIp,
        address: "10.96.1.0:80".parse().unwrap(),
        node: None,
        transport: Transport::Tcp,
        affinity,
        inside_local: false,
        outside_local: false,
        ranges: Vec::new(),
        endpoints: backends.iter().map(endpoint).collect(),
    }
}

/// What is wrong with these answers to a client on node 1, whom backends see as `source`.
fn judged(
    frontend: &Frontend,
    answers: &[(&str, u32)],
    refused: u32,
    flows: &[(&str, i64)],
    source: &str,
) -> (Row, Vec<String>) {
    let answered: BTreeMap<SocketAddr, u32> = answers.iter().map(|(text, n)| (text.parse().unwrap(), *n)).collect();
    let sources = answered.keys().map(|backend| (*backend, BTreeSet::from([source.parse().unwrap()]))).collect();
    let sent = answered.values().sum::<u32>() + refused;
    let result = ProbeResult { sent, refused, answered, sources, ..ProbeResult::default() };
    let flows: Flows = flows
        .iter()
        .map(|(text, n)| (("default/web:http".to_owned(), text.parse().unwrap(), "TCP".to_owned()), *n))
        .collect();
    let origin = Origin::Node(1);
    let outcome = frontend.outcome(&origin, 1);
    let question = Question { frontend, client: Client::Node(1), origin, at: 1, outcome };
    let mut row = row(&question, &result, Some(&flows));
    let wrong = judge(&question, &row);
    row.ok = wrong.is_empty();
    (row, wrong)
}

/// As [`judged`], for a client that backends see as they should.
fn judge_node(frontend: &Frontend, answers: &[(&str, u32)], refused: u32, flows: &[(&str, i64)]) -> Vec<String> {
    judged(frontend, answers, refused, flows, NODE).1
}

const A: &str = "10.244.1.2:8080";
const B: &str = "10.244.1.3:8080";
const NODE: &str = "192.168.99.11";

#[test]
fn right_answers_are_right() {
    let right = Vec::<String>::new();
    assert_eq!(judge_node(&frontend(&[A, B], false), &[(A, 9), (B, 11)], 0, &[(A, 9), (B, 11)]), right);
    assert_eq!(judge_node(&frontend(&[A, B], true), &[(B, 20)], 0, &[(B, 20)]), right);
    assert_eq!(judge_node(&frontend(&[], false), &[], 4, &[]), right);
}

#[test]
fn each_way_to_be_wrong_is_named() {
    let missing = judge_node(&frontend(&[A, B], false), &[(A, 20)], 0, &[(A, 20)]);
    assert_eq!(missing, ["backend 10.244.1.3:8080 did not answer any of 20 requests"]);
    let stranger = judge_node(&frontend(&[A], false), &[(A, 5), (B, 5)], 0, &[(A, 5), (B, 5)]);
    assert_eq!(stranger, ["10.244.1.3:8080 answered, which is not its backend"]);
    let uncounted = judge_node(&frontend(&[A], false), &[(A, 10)], 0, &[(A, 9)]);
    assert_eq!(uncounted, ["backend 10.244.1.2:8080 answered 10 requests and netlb counted 9"]);
    let wandering = judge_node(&frontend(&[A, B], true), &[(A, 5), (B, 5)], 0, &[(A, 5), (B, 5)]);
    assert_eq!(wandering, ["one client was sent to 2 backends in spite of its ClientIP affinity"]);
    let silent = judge_node(&frontend(&[A], true), &[], 0, &[]);
    assert_eq!(silent, ["nobody answered"]);
    let served = judge_node(&frontend(&[], false), &[(A, 2)], 2, &[]);
    assert_eq!(served, ["it has no endpoints, and 2 of 4 requests were not refused"]);
    let (_, masked) = judged(&frontend(&[A], false), &[(A, 10)], 0, &[(A, 10)], "10.9.9.9");
    assert_eq!(masked, ["backend 10.244.1.2:8080 saw the client as 10.9.9.9 instead of 10.244.1.1 or 192.168.99.11"]);
    let forbidden = Frontend { inside_local: true, ..frontend(&[A], false) };
    let mut elsewhere = forbidden;
    elsewhere.endpoints[0].node = Some(2);
    let (_, answered) = judged(&elsewhere, &[(A, 2)], 0, &[], NODE);
    assert_eq!(answered, ["policy forbids it, and 2 of 2 requests were not dropped"]);
}

#[test]
fn a_flow_that_was_opened_twice_is_excused_once() {
    let plain = frontend(&[A, B], false);
    let origin = Origin::Node(1);
    let outcome = plain.outcome(&origin, 1);
    let question = Question { frontend: &plain, client: Client::Node(1), origin, at: 1, outcome };
    let (mut row, wrong) = judged(&plain, &[(A, 9), (B, 11)], 0, &[(A, 10), (B, 12)], NODE);
    assert_eq!((excess(&row), wrong.len()), (2, 2));
    row.reopened = 1;
    assert_eq!(judge(&question, &row), ["backend 10.244.1.3:8080 answered 11 requests and netlb counted 12"]);
    row.reopened = 2;
    assert_eq!(judge(&question, &row), Vec::<String>::new());
}

fn client(rows: Vec<Row>) -> ClientReport {
    ClientReport { client: "node", forwarded: None, requests: rows }
}

#[test]
fn affinity_is_for_all_addresses_of_a_port() {
    let sticky = frontend(&[A, B], true);
    let door = Frontend { kind: Kind::NodePort, ..sticky.clone() };
    let to = |frontend, backend| judged(frontend, &[(backend, 20)], 0, &[(backend, 20)], NODE).0;
    assert_eq!(wandering(&[client(vec![to(&sticky, A), to(&door, A)])]), Vec::<String>::new());
    assert_eq!(
        wandering(&[client(vec![to(&sticky, A), to(&door, B)])]),
        [
            "default/web:http (ipv4) from node1 by node1: 2 backends by ClusterIP, NodePort, in spite of its ClientIP affinity"
        ]
    );
}

#[test]
fn proofs_are_compared_without_what_chance_decides() {
    let plain = frontend(&[A, B], false);
    let clients = |answers: &[(&str, u32)], source| vec![client(vec![judged(&plain, answers, 0, &[], source).0])];
    let first = clients(&[(A, 9), (B, 11)], NODE);
    assert_eq!(compare("none", &first, "socket", &clients(&[(A, 12), (B, 8)], NODE)).differences, Vec::<String>::new());
    let one = compare("none", &first, "socket", &clients(&[(A, 20)], NODE));
    assert_eq!((one.rows, one.differences.len()), (1, 1));
    assert!(one.differences[0].ends_with("; socket: 10.244.1.2:8080 saw 192.168.99.11"), "{:?}", one.differences);
    assert_eq!(compare("none", &first, "socket", &clients(&[(A, 9), (B, 11)], "10.9.9.9")).differences.len(), 1);
    assert_eq!(compare("none", &first, "socket", &[]).differences.len(), 1);
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
