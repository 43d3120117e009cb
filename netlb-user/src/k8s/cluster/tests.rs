//! The source against an API server that does what it should, and against one that does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::fake::{CIDRS, Fake, Fault, NODES, PODS, SERVICES, SLICES, Verb};
use super::server::Patience;
use super::{Access, Asked, Cluster, OnAsked};
use crate::events::{self, Event, EventSink as _, Reason};
use crate::k8s::SourceNews;
use crate::model::{Change, Kind, NodeName, ObjectKey, World};

/// How long anything may take before a test calls it stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Host, method, and status of the answer.
type Question = (String, String, Option<u16>);

/// A source, and the world as it tells it.
struct Rig {
    news: Receiver<SourceNews>,
    world: World,
    /// What it told last.
    last: SourceNews,
    synced: usize,
    events: tokio::sync::mpsc::Sender<Event>,
    /// Questions to it, and how often.
    asked: Arc<Mutex<BTreeMap<Question, usize>>>,
    _cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn follow(at: SocketAddr) -> Self {
        Self::follow_with(at, Patience::default())
    }

    fn follow_with(at: SocketAddr, patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let config = json!({
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{at}")}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        fs::write(&path, config.to_string()).unwrap();
        let access = Access { kubeconfig: Some(path), server: None };
        let (sender, news) = channel();
        let keep = dir.path().join("api-servers.json");
        let tell = move |news| drop(sender.send(news));
        let (events, told) = events::channel();
        let asked: Arc<Mutex<BTreeMap<Question, usize>>> = Arc::default();
        let counts = Arc::clone(&asked);
        let on_asked: OnAsked = Arc::new(move |asked: &Asked<'_>| {
            let kind = (asked.host.to_owned(), asked.method.to_owned(), asked.status);
            *counts.lock().unwrap().entry(kind).or_default() += 1;
        });
        let cluster = Cluster::follow_with(patience, access, NodeName::new("n1"), &keep, told, on_asked, tell).unwrap();
        let (world, last) = (World::default(), SourceNews::default());
        Rig { news, world, last, synced: 0, events, asked, _cluster: cluster, _dir: dir }
    }

    /// Takes in what it tells until `enough`.
    fn until(&mut self, what: &str, enough: impl Fn(&Rig) -> bool) {
        while !enough(self) {
            let Ok(mut news) = self.news.recv_timeout(STUCK) else {
                panic!("in vain waited until {what}; {:?}, {:?}", self.names(), self.last);
            };
            for change in news.changes.drain(..) {
                match change {
                    Change::Apply(object) => drop(self.world.apply(object)),
                    Change::Delete(key) => drop(self.world.delete(&key)),
                    Change::Synced => self.synced += 1,
                    Change::Incomplete => panic!("a list is whole"),
                }
            }
            self.last = news;
        }
    }

    fn until_synced(&mut self) {
        self.until("it is synced", |rig| rig.synced == 1);
    }

    fn until_names(&mut self, names: &[&str]) {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.until(&format!("there are {names:?}"), |rig| rig.names() == names);
    }

    fn until_fails(&mut self, words: &str) {
        let has = |rig: &Rig| rig.last.failure.as_ref().is_some_and(|failure| failure.reason.contains(words));
        self.until(&format!("it fails by {words:?}"), has);
    }

    fn until_well(&mut self) {
        self.until("it is well", |rig| rig.last.failure.is_none());
    }

    /// Services and slices.
    fn names(&self) -> BTreeSet<String> {
        let keys = self.world.keys().into_iter();
        let keys = keys.filter(|key| matches!(key.kind, Kind::Service | Kind::EndpointSlice));
        keys.map(|key: ObjectKey| key.name.to_string()).collect()
    }

    fn port_of(&self, service: &str) -> u16 {
        self.world.services().find(|spec| &*spec.name.name == service).map_or(0, |spec| spec.ports[0].port)
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]},
    })
}

fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.244.0.5"]}],
    })
}

fn count(asked: &[String], start: &str) -> usize {
    asked.iter().filter(|line| line.starts_with(start)).count()
}

#[test]
fn objects_live_and_die() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    rig.until_names(&["web"]);
    assert_eq!((rig.last.revision.as_deref(), &rig.last.failure), (Some("1"), &None));
    fake.put(SLICES, slice("web-1"));
    rig.until_names(&["web", "web-1"]);
    fake.put(SERVICES, service("web", 81));
    rig.until("the port is another", |rig| rig.port_of("web") == 81);
    fake.delete(SLICES, "web-1");
    rig.until_names(&["web"]);
    fake.put(NODES, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}}}));
    rig.until("the zone is known", |rig| rig.world.node(&NodeName::new("n1")).is_some_and(|n| n.zone.is_some()));
    fake.put(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "status": {"podIP": "10.244.0.5"}}));
    fake.put(CIDRS, json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}));
    rig.until("pods and ranges are known", |rig| {
        rig.world.pods().count() == 1 && rig.world.service_cidrs().count() == 1
    });
    assert_eq!(rig.synced, 1);
}

#[test]
fn it_asks_for_what_it_needs_and_no_more() {
    let fake = Fake::start();
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    fake.put(SERVICES, service("web", 80));
    rig.until_names(&["web"]);
    let asked = fake.asked();
    let ours = "labelSelector=!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
    for want in [
        format!("LIST {SERVICES} limit=500 {ours}"),
        format!("WATCH {SERVICES} resourceVersion=100 {ours} allowWatchBookmarks=true"),
        format!("LIST {SLICES} limit=500 {ours}"),
        format!("LIST {NODES} limit=500 fieldSelector=metadata.name=n1"),
        format!("LIST {PODS} limit=500 fieldSelector=spec.nodeName=n1"),
        format!("LIST {CIDRS} limit=500"),
    ] {
        assert!(asked.contains(&want), "{want} is not in {asked:#?}");
    }
}

#[test]
fn nothing_is_told_before_all_kinds_are_known() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.put(SLICES, slice("web-1"));
    fake.fault(Verb::List, SLICES, Fault::Status(500, "InternalError"));
    fake.fault(Verb::List, NODES, Fault::Status(503, "ServiceUnavailable"));
    let mut rig = Rig::follow(fake.at);
    rig.until_fails("API server");
    assert_eq!((rig.names(), &rig.last.revision), (BTreeSet::new(), &None));
    let first = loop {
        let news = rig.news.recv_timeout(STUCK).expect("the first state");
        if !news.changes.is_empty() {
            break news.changes;
        }
    };
    assert_eq!((first.len(), first.last()), (3, Some(&Change::Synced)), "{first:?}");
}

#[test]
fn a_list_comes_by_pages_and_counts_when_it_is_whole() {
    let fake = Fake::start();
    for number in 0..1201 {
        fake.put(SERVICES, service(&format!("s{number:04}"), 80));
    }
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    assert_eq!(rig.names().len(), 1201);
    assert_eq!(count(&fake.asked(), &format!("LIST {SERVICES}")), 3);

    // A relist whose second page cannot be had changes nothing; the one after it does.
    fake.rewrite(SERVICES, (0..600).map(|number| service(&format!("s{number:04}"), 80)));
    fake.fault(Verb::List, SERVICES, Fault::Slow(1 << 16));
    fake.fault(Verb::List, SERVICES, Fault::Cut(10_000));
    fake.fault(Verb::List, SERVICES, Fault::Status(500, "InternalError"));
    fake.cut();
    rig.until_fails("500");
    assert_eq!(rig.names().len(), 1201);
    rig.until("the rest is gone", |rig| rig.names().len() == 600);
    rig.until_well();
    assert_eq!(rig.synced, 1);
}

#[test]
fn a_list_whose_pages_expire_begins_anew() {
    let fake = Fake::start();
    for number in 0..501 {
        fake.put(SERVICES, service(&format!("s{number:04}"), 80));
    }
    // The history is forgotten while the first page is on its way.
    fake.fault(Verb::List, SERVICES, Fault::Slow(2048));
    let mut rig = Rig::follow(fake.at);
    while count(&fake.asked(), &format!("LIST {SERVICES}")) == 0 {
        std::thread::yield_now();
    }
    fake.compact();
    rig.until_synced();
    assert_eq!(rig.names().len(), 501);
    assert_eq!(count(&fake.asked(), &format!("LIST {SERVICES}")), 4, "{:#?}", fake.asked());
}

#[test]
fn what_happened_while_it_was_not_connected_is_caught_up_with() {
    let fake = Fake::start();
    fake.put(SERVICES, service("old", 80));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    // The history is there: no list is needed.
    fake.cut();
    fake.delete(SERVICES, "old");
    fake.put(SERVICES, service("new", 80));
    rig.until_names(&["new"]);
    assert_eq!(count(&fake.asked(), &format!("LIST {SERVICES}")), 1);
    // The history is gone: what the new list does not name is gone too.
    fake.rewrite(SERVICES, [service("newest", 80)]);
    fake.cut();
    rig.until_names(&["newest"]);
    rig.until_well();
}

#[test]
fn a_server_that_is_away_changes_nothing_and_is_found_again() {
    let fake = Fake::start();
    let at = fake.at;
    fake.put(SERVICES, service("web", 80));
    let mut rig = Rig::follow(at);
    rig.until_synced();
    drop(fake);
    rig.until_fails("does not answer");
    rig.until_names(&["web"]);
    // Another one, that has lost everything but what is made now.
    let fake = Fake::start_at(at);
    fake.rewrite(SERVICES, [service("other", 80)]);
    rig.until_names(&["other"]);
    rig.until_well();
}

#[test]
fn a_server_that_is_away_from_the_start_is_waited_for() {
    let fake = Fake::start();
    let at = fake.at;
    drop(fake);
    let mut rig = Rig::follow(at);
    rig.until_fails("does not answer");
    assert_eq!(rig.synced, 0);
    let fake = Fake::start_at(at);
    fake.put(SERVICES, service("web", 80));
    rig.until_synced();
    rig.until_names(&["web"]);
    rig.until_well();
}

#[test]
fn a_server_that_is_stopped_is_noticed() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    let patience = Patience { answer: Duration::from_millis(300), silence: Duration::from_millis(300) };
    for _ in 0..2 {
        fake.fault(Verb::Watch, SERVICES, Fault::Silence);
    }
    let mut rig = Rig::follow_with(fake.at, patience);
    rig.until_fails("nothing came within 0.3 s");
    fake.cut();
    fake.put(SERVICES, service("web", 81));
    rig.until("the port is another", |rig| rig.port_of("web") == 81);
    rig.until_well();
}

#[test]
fn nonsense_changes_nothing() {
    let half =
        r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[{"metadata":{"na"#;
    let of = |kind: &str, items: &str| {
        format!(r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{"resourceVersion":"5"}},"items":{items}}}"#)
    };
    let json = "application/json";
    for (what, fault, words) in [
        ("half JSON", Fault::Body(json, half.to_owned()), "no JSON as it should be"),
        ("another content type", Fault::Body("text/html", "<html>log in</html>".to_owned()), "of type text/html"),
        ("another kind", Fault::Body(json, of("PodList", "[]")), "is no ServiceList"),
        ("an object", Fault::Body(json, r#"{"kind":"Service"}"#.to_owned()), "no JSON as it should be"),
        ("an item without a name", Fault::Body(json, of("ServiceList", r#"[{"metadata":{}}]"#)), "metadata.name"),
        ("an item that is none", Fault::Body(json, of("ServiceList", "[7]")), "is not an object"),
        (
            "no version",
            Fault::Body(json, r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{},"items":[]}"#.to_owned()),
            "without a resourceVersion",
        ),
        ("nothing", Fault::Body(json, String::new()), "no JSON as it should be"),
        ("an empty page for an error", Fault::Status(502, "BadGateway"), "502"),
    ] {
        let fake = Fake::start();
        fake.put(SERVICES, service("web", 80));
        let mut rig = Rig::follow(fake.at);
        rig.until_synced();
        fake.fault(Verb::List, SERVICES, fault);
        fake.compact();
        fake.cut();
        rig.until_fails(words);
        assert_eq!(rig.names(), BTreeSet::from(["web".to_owned()]), "{what}");
        fake.put(SERVICES, service("next", 80));
        rig.until_names(&["web", "next"]);
        rig.until_well();
    }
}

#[test]
fn nonsense_in_a_watch_changes_nothing_and_leads_to_a_list() {
    for (line, words) in [
        (r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"x","na"#.to_owned(), None),
        ("what\n".to_owned(), Some("no JSON as it should be")),
        (r#"{"type":"FOO","object":{}}"#.to_owned() + "\n", Some("watch event of type")),
        (r#"{"type":"DELETED","object":{"kind":"Pod","metadata":{"name":"web"}}}"#.to_owned() + "\n", Some("Pod")),
        (r#"{"type":"DELETED","object":{"kind":"Service","metadata":{"name":"gone"}}}"#.to_owned() + "\n", None),
        (r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}"#.to_owned() + "\n", Some("etcd")),
    ] {
        let fake = Fake::start();
        fake.put(SERVICES, service("web", 80));
        fake.fault(Verb::Watch, SERVICES, Fault::Body("application/json", line));
        let mut rig = Rig::follow(fake.at);
        rig.until_synced();
        if let Some(words) = words {
            rig.until_fails(words);
        }
        fake.put(SERVICES, service("next", 80));
        rig.until_names(&["web", "next"]);
        rig.until_well();
    }
}

#[test]
fn an_event_cut_in_the_middle_is_read_again() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.fault(Verb::Watch, SERVICES, Fault::Cut(60));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    fake.put(SERVICES, service("next", 80));
    rig.until_names(&["web", "next"]);
    assert_eq!(count(&fake.asked(), &format!("LIST {SERVICES}")), 1);
    assert_eq!(count(&fake.asked(), &format!("WATCH {SERVICES} resourceVersion=101")), 2);
}

#[test]
fn a_slow_server_is_waited_for() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.fault(Verb::List, SERVICES, Fault::Slow(20));
    fake.fault(Verb::Watch, SERVICES, Fault::Slow(20));
    // Each piece comes well in time; all of them do not.
    let patience = Patience { answer: Duration::from_secs(5), silence: Duration::from_secs(5) };
    let mut rig = Rig::follow_with(fake.at, patience);
    rig.until_synced();
    fake.put(SERVICES, service("next", 80));
    rig.until_names(&["web", "next"]);
    assert_eq!(rig.last.failure, None);
    assert_eq!(count(&fake.asked(), &format!("LIST {SERVICES}")), 1);
}

#[test]
fn an_object_that_cannot_be_used_is_a_problem_and_the_others_go_on() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.put(SERVICES, json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad", "namespace": "default"}, "spec": {"type": "Magic"}}));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    rig.until_names(&["web"]);
    let said = |rig: &Rig| -> Vec<String> { rig.last.problems.iter().map(ToString::to_string).collect() };
    assert!(
        matches!(&said(&rig)[..], [one] if one.starts_with("Service default/bad spec.type: \"Magic\"")),
        "{:?}",
        said(&rig)
    );
    // One that could be used and cannot any more goes, as from a folder; one bad port does not stop the other.
    let mut two = service("web", 80);
    two["spec"]["ports"] = json!([{"port": 81, "name": "a"}, {"port": 70000, "name": "b"}]);
    fake.put(SERVICES, two);
    rig.until("the port is another", |rig| rig.port_of("web") == 81);
    assert_eq!(rig.last.problems.len(), 2);
    fake.put(
        SERVICES,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": 7}),
    );
    rig.until_names(&[]);
    fake.put(SERVICES, service("bad", 80));
    fake.delete(SERVICES, "web");
    rig.until_names(&["bad"]);
    rig.until("no problem is left", |rig| rig.last.problems.is_empty());
}

#[test]
fn a_label_takes_an_object_out_of_sight_and_back() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.put(SLICES, slice("web-1"));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    let mut other = service("web", 80);
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    fake.put(SERVICES, other);
    rig.until_names(&["web-1"]);
    let mut headless = slice("web-1");
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    fake.put(SLICES, headless);
    rig.until_names(&[]);
    fake.put(SERVICES, service("web", 80));
    fake.put(SLICES, slice("web-1"));
    rig.until_names(&["web", "web-1"]);
}

#[test]
fn what_need_not_be_there_may_be_missing() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.fault(Verb::List, CIDRS, Fault::Status(404, "NotFound"));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    assert_eq!(rig.last.failure, None);

    let fake = Fake::start();
    fake.fault(Verb::List, PODS, Fault::Status(403, "pods is forbidden"));
    let mut rig = Rig::follow(fake.at);
    rig.until_synced();
    let reason = rig.last.failure.clone().map(|failure| failure.reason).unwrap_or_default();
    assert!(reason.contains("Pods may not be read: pods is forbidden; grant get, list and watch"), "{reason}");
}

#[test]
fn rights_that_are_missing_are_said_and_come_back() {
    let fake = Fake::start();
    fake.put(SERVICES, service("web", 80));
    fake.fault(Verb::List, SERVICES, Fault::Status(403, "forbidden"));
    fake.fault(Verb::List, SLICES, Fault::Status(401, "Unauthorized"));
    let mut rig = Rig::follow(fake.at);
    rig.until_fails("Services may not be read");
    rig.until_synced();
    rig.until_well();
    rig.until_names(&["web"]);
    // What was granted is taken away: what was told holds.
    fake.fault(Verb::Watch, SERVICES, Fault::Status(403, "forbidden"));
    fake.fault(Verb::List, SERVICES, Fault::Status(403, "forbidden"));
    fake.cut();
    rig.until_fails("Services may not be read");
    rig.until_names(&["web"]);
    rig.until_well();
}

#[test]
fn credentials_that_cannot_be_read_are_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access { kubeconfig: Some(dir.path().join("none")), server: None };
    let told = events::channel().1;
    let follow = Cluster::follow(access, NodeName::new("n1"), dir.path(), told, Arc::new(|_| {}), |_| {});
    let error = follow.err().map(|e| e.to_string());
    let error = error.unwrap_or_default();
    assert!(error.contains("--kubeconfig") && error.ends_with("name a file that kubectl can use"), "{error}");
}

#[test]
fn events_are_written_at_their_objects() {
    let fake = Fake::start();
    let mut web = service("web", 80);
    web["metadata"]["uid"] = json!("u-1");
    fake.put(SERVICES, web);
    let mut rig = Rig::follow(fake.at);
    let event = |name: &str| Event {
        kind: Kind::Service,
        namespace: "default".to_owned(),
        name: name.to_owned(),
        reason: Reason::NotProgrammed,
        note: "spec.ports[0].port: it is taken; choose another".to_owned(),
    };
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    // One that is refused holds up nobody.
    fake.fault(Verb::Make, path, Fault::Status(403, "forbidden"));
    for name in ["refused", "web", "gone"] {
        assert!(rig.events.write(event(name)));
    }
    fake.until_made(2);
    let made = fake.made();
    assert!(made.iter().all(|(at, _)| at == path), "{made:?}");
    let regarding: Vec<&Value> = made.iter().map(|(_, event)| &event["regarding"]).collect();
    assert_eq!((&regarding[0]["name"], &regarding[0]["uid"]), (&json!("web"), &json!("u-1")));
    assert_eq!((&regarding[1]["name"], &regarding[1]["uid"]), (&json!("gone"), &Value::Null));
    assert_eq!(made[0].1["note"], "spec.ports[0].port: it is taken; choose another");
    rig.until_synced();
    let asked = rig.asked.lock().unwrap();
    let of = |method: &str, status| asked.get(&(fake.at.to_string(), method.to_owned(), Some(status))).copied();
    assert_eq!(of("POST", 403), Some(1), "{asked:?}");
    assert!(of("POST", 201) >= Some(1) && of("GET", 200) >= Some(5), "{asked:?}");
}
