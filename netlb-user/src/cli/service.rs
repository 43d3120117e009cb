//! `netlb service list`: what the maps hold of each Service port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netlb_common::backend::state;
use netlb_common::frontend::{FrontendKey, FrontendValue, flags, scheduler};
use netlb_common::proto;
use netlb_common::source_range::SourceRangeKey;
use serde::Serialize;

use super::Paths;
use super::output::{Format, print, print_json};
use super::table::TextTable;
use crate::plan::Names;
use crate::store::{KernelStore, MapStore as _, Tables};

#[derive(Args, Debug)]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Subcommand, Debug)]
enum ServiceCommand {
    /// One line a frontend: how many backends its clients find inside the cluster and outside
    List(ListArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    paths: Paths,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A Service port in one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Row {
    /// `namespace/name:port`, without the colon if the port has no name.
    service: String,
    family: &'static str,
    protocol: &'static str,
    frontends: Vec<Frontend>,
    /// Backends that take new flows, of clients inside or outside.
    active: usize,
    /// Backends that only keep the flows they have.
    draining: usize,
    /// `random`, `rr` (weighted or not), `sh`, `lc`.
    scheduler: &'static str,
    /// Seconds a client stays with its backend; 0: no affinity.
    affinity_seconds: u32,
}

/// Where a Service port is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Frontend {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    kind: &'static str,
    /// `None`: every address of the node that serves node ports.
    address: Option<IpAddr>,
    port: u16,
    /// For clients inside the cluster, and outside.
    inside: Reach,
    outside: Reach,
    /// The client's address is kept, whatever the backend (`externalTrafficPolicy: Local`).
    keeps_client: bool,
    /// Ranges of clients that may come; `None`: everybody.
    sources: Option<Vec<String>>,
}

/// What a client finds at a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Reach {
    /// Traffic policy: `Cluster` or `Local`.
    policy: &'static str,
    backends: usize,
    /// What becomes of its packets without any: `refused`, or `dropped` because there are some, and traffic policy forbids them.
    without: &'static str,
}

impl Reach {
    fn new(list: Vec<u32>, flags: u32, local: u32, drop: u32) -> Self {
        Reach {
            policy: if flags & local == 0 { "Cluster" } else { "Local" },
            backends: list.into_iter().collect::<BTreeSet<_>>().len(),
            without: if flags & drop == 0 { "refused" } else { "dropped" },
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.backends, self.policy) {
            (0, _) => f.write_str(self.without),
            (count, "Local") => write!(f, "{count} local"),
            (count, _) => write!(f, "{count}"),
        }
    }
}

pub(super) fn run(args: &ServiceArgs) -> anyhow::Result<ExitCode> {
    let ServiceCommand::List(args) = &args.command;
    let tables = KernelStore::open(&args.paths.pins())?.read()?;
    let rows = rows(&tables, &args.paths.names());
    match args.output {
        Format::Json => print_json(&rows)?,
        Format::Table => print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(tables: &Tables, names: &Names) -> Vec<Row> {
    let mut ports: BTreeMap<u32, Vec<(&FrontendKey, &FrontendValue)>> = BTreeMap::new();
    for (key, value) in tables.frontends.iter().filter(|(key, _)| !key.is_address()) {
        ports.entry(value.service).or_default().push((key, value));
    }
    let count = |service: u32, wanted: u8| {
        tables.backends.values().filter(|b| b.service == service && b.state == wanted).count()
    };
    let mut rows: Vec<Row> = ports
        .into_iter()
        .filter_map(|(id, entries)| {
            let (key, value) = *entries.first()?;
            let mut frontends: Vec<Frontend> =
                entries.into_iter().map(|(key, value)| frontend(tables, key, value)).collect();
            frontends.sort_by_key(|f| (ORDER.iter().position(|kind| *kind == f.kind), f.address, f.port));
            Some(Row {
                service: names.service(id),
                family: if key.addr.is_v4() { "ipv4" } else { "ipv6" },
                protocol: proto::name(key.proto()),
                frontends,
                active: count(id, state::ACTIVE),
                draining: count(id, state::DRAINING),
                scheduler: scheduler::name((value.flags & flags::SCHEDULER_MASK) >> flags::SCHEDULER_SHIFT),
                affinity_seconds: value.affinity_s,
            })
        })
        .collect();
    rows.sort_by(|a, b| (&a.service, a.family, a.protocol).cmp(&(&b.service, b.family, b.protocol)));
    rows
}

/// Kinds of frontends as they are listed.
const ORDER: [&str; 4] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalIP"];

fn frontend(tables: &Tables, key: &FrontendKey, value: &FrontendValue) -> Frontend {
    let [own, node, balancer, external] = ORDER;
    let has = |bit: u32| value.flags & bit != 0;
    Frontend {
        kind: match key.is_node_port() {
            true => node,
            false if has(flags::LOAD_BALANCER) => balancer,
            false if has(flags::EXTERNAL) => external,
            false => own,
        },
        address: (!key.is_node_port()).then(|| key.addr.to_ip()),
        port: key.port().get(),
        inside: Reach::new(tables.list(value), value.flags, flags::INSIDE_LOCAL, flags::DROP_INSIDE),
        outside: Reach::new(tables.outside_list(value), value.flags, flags::OUTSIDE_LOCAL, flags::DROP_OUTSIDE),
        keeps_client: has(flags::KEEP_CLIENT),
        sources: has(flags::SOURCE_RANGES).then(|| {
            let own = tables.source_ranges.iter().filter(|range| range.service == value.service);
            own.map(SourceRangeKey::to_string).collect()
        }),
    }
}

fn table(rows: &[Row]) -> String {
    let headings =
        ["SERVICE", "FAMILY", "KIND", "FRONTEND", "INSIDE", "OUTSIDE", "DRAINING", "SCHEDULER", "SESSION", "SOURCES"];
    let mut table = TextTable::new(&headings);
    for (row, frontend) in rows.iter().flat_map(|row| row.frontends.iter().map(move |frontend| (row, frontend))) {
        let at = match frontend.address {
            Some(address) => SocketAddr::new(address, frontend.port).to_string(),
            None => format!("*:{}", frontend.port),
        };
        let affinity = if row.affinity_seconds == 0 { String::new() } else { format!("{} s", row.affinity_seconds) };
        let sources = match &frontend.sources {
            Some(ranges) if ranges.is_empty() => "nobody".to_owned(),
            Some(ranges) => ranges.join(","),
            None => String::new(),
        };
        table.row([
            row.service.clone(),
            row.family.to_owned(),
            frontend.kind.to_owned(),
            format!("{at}/{}", row.protocol),
            frontend.inside.to_string(),
            frontend.outside.to_string(),
            row.draining.to_string(),
            row.scheduler.to_owned(),
            affinity,
            sources,
        ]);
    }
    table.render()
}

#[cfg(test)]
pub(super) mod tests {
    use netlb_common::backend::BackendValue;
    use netlb_common::{Addr, Port};

    use super::*;
    use crate::plan::PortLabel;

    fn ip(text: &str) -> Addr {
        Addr::from_ip(text.parse().expect("an address"))
    }

    fn backend(addr: &str, service: u32, state: u8) -> BackendValue {
        BackendValue {
            addr: ip(addr),
            port: Port::new(8080),
            state,
            proto: proto::TCP,
            generation: 1,
            endpoint: 0,
            service,
            flags: 0,
            pad: 0,
        }
    }

    /// A Service of two backends with a name, one without either.
    pub(in super::super) fn world() -> (Tables, Names) {
        let mut tables = Tables::default();
        let value = |service, count, affinity_s| FrontendValue {
            service,
            flags: 0,
            slots: 0,
            count,
            outside_slots: 0,
            outside_count: count,
            affinity_s,
            generation: 1,
        };
        tables.slots = BTreeMap::from([(0, 1), (1, 1)]);
        tables.frontends.insert(FrontendKey::address(ip("10.96.0.1")), value(0, 0, 0));
        tables.frontends.insert(FrontendKey::new(ip("10.96.0.1"), Port::new(80), proto::TCP), value(1, 2, 600));
        tables.frontends.insert(FrontendKey::new(ip("fd00:10:96::2"), Port::new(53), proto::UDP), value(2, 0, 0));
        tables.backends.insert(1, backend("10.244.1.5", 1, state::ACTIVE));
        tables.backends.insert(2, backend("10.244.1.6", 1, state::DRAINING));
        tables.backends.insert(3, backend("10.244.1.7", 1, state::REMOVED));
        tables.backends.insert(4, backend("10.244.1.8", 1, state::FREE));
        let label = PortLabel {
            service: "shop/frontend".to_owned(),
            port: "http".to_owned(),
            protocol: "TCP".to_owned(),
            family: "ipv4".to_owned(),
        };
        let names = Names { services: BTreeMap::from([(1, label)]), ..Names::default() };
        (tables, names)
    }

    #[test]
    fn services_by_name_with_their_frontends() {
        let (mut tables, names) = world();
        let external = flags::EXTERNAL | flags::KEEP_CLIENT | flags::OUTSIDE_LOCAL | flags::DROP_OUTSIDE;
        let common = FrontendValue {
            service: 1,
            flags: external | scheduler::ROUND_ROBIN << flags::SCHEDULER_SHIFT,
            slots: 0,
            count: 2,
            outside_slots: 0,
            outside_count: 0,
            affinity_s: 600,
            generation: 1,
        };
        let node_port = FrontendKey::node_port(true, Port::new(30080), proto::TCP);
        tables.frontends.insert(node_port, common);
        let balancer = FrontendValue {
            flags: common.flags & !flags::DROP_OUTSIDE | flags::LOAD_BALANCER | flags::SOURCE_RANGES,
            outside_count: 1,
            ..common
        };
        tables.frontends.insert(FrontendKey::new(ip("1.2.3.4"), Port::new(80), proto::TCP), balancer);
        tables.source_ranges.insert(SourceRangeKey::range(1, ip("203.0.113.9"), 25));
        if let Some(own) = tables.frontends.get_mut(&FrontendKey::new(ip("10.96.0.1"), Port::new(80), proto::TCP)) {
            own.flags = scheduler::ROUND_ROBIN << flags::SCHEDULER_SHIFT;
        }
        let want = "\
SERVICE             FAMILY  KIND          FRONTEND                INSIDE   OUTSIDE  DRAINING  SCHEDULER  SESSION  SOURCES
service#2           ipv6    ClusterIP     [fd00:10:96::2]:53/UDP  refused  refused  0         random     -        -
shop/frontend:http  ipv4    ClusterIP     10.96.0.1:80/TCP        1        1        1         rr         600 s    -
shop/frontend:http  ipv4    NodePort      *:30080/TCP             1        dropped  1         rr         600 s    -
shop/frontend:http  ipv4    LoadBalancer  1.2.3.4:80/TCP          1        1 local  1         rr         600 s    203.0.113.0/25
";
        let rows = rows(&tables, &names);
        assert_eq!(table(&rows), want);
        let json = serde_json::to_value(&rows[1]).expect("JSON");
        assert_eq!((&json["scheduler"], &json["active"]), (&"rr".into(), &1.into()));
        let [_, node, balancer] = &json["frontends"].as_array().expect("a list")[..] else { panic!("{json}") };
        assert_eq!((&node["kind"], &node["address"]), (&"NodePort".into(), &serde_json::Value::Null));
        let outside = serde_json::json!({"policy": "Local", "backends": 0, "without": "dropped"});
        assert_eq!(node["outside"], outside);
        assert_eq!((&balancer["keeps_client"], &balancer["sources"][0]), (&true.into(), &"203.0.113.0/25".into()));
    }
}
