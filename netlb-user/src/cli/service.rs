//! `netlb service list`: what the maps hold of each Service port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netlb_common::backend::state;
use netlb_common::proto;
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
    /// One line a Service port and family
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
    /// Backends that take new flows.
    active: usize,
    /// Backends that only keep the flows they have.
    draining: usize,
    /// Seconds a client stays with its backend; 0: no affinity.
    affinity_seconds: u32,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
struct Frontend {
    address: IpAddr,
    port: u16,
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
    let mut ports: BTreeMap<u32, (BTreeSet<Frontend>, u8, u32)> = BTreeMap::new();
    for (key, value) in tables.frontends.iter().filter(|(key, _)| !key.is_address()) {
        let (frontends, protocol, affinity) = ports.entry(value.service).or_default();
        frontends.insert(Frontend { address: key.addr.to_ip(), port: key.port().get() });
        (*protocol, *affinity) = (key.proto(), value.affinity_s);
    }
    let count = |service: u32, wanted: u8| {
        tables.backends.values().filter(|b| b.service == service && b.state == wanted).count()
    };
    let mut rows: Vec<Row> = ports
        .into_iter()
        .map(|(id, (frontends, protocol, affinity_seconds))| Row {
            service: names.service(id),
            family: if frontends.iter().all(|f| f.address.is_ipv4()) { "ipv4" } else { "ipv6" },
            protocol: proto::name(protocol),
            frontends: frontends.into_iter().collect(),
            active: count(id, state::ACTIVE),
            draining: count(id, state::DRAINING),
            affinity_seconds,
        })
        .collect();
    rows.sort_by(|a, b| (&a.service, a.family, a.protocol).cmp(&(&b.service, b.family, b.protocol)));
    rows
}

fn table(rows: &[Row]) -> String {
    let mut table = TextTable::new(&["SERVICE", "FAMILY", "FRONTEND", "ACTIVE", "DRAINING", "SESSION"]);
    for row in rows {
        let at = |f: &Frontend| format!("{}/{}", std::net::SocketAddr::new(f.address, f.port), row.protocol);
        let affinity = if row.affinity_seconds == 0 { String::new() } else { format!("{} s", row.affinity_seconds) };
        table.row([
            row.service.clone(),
            row.family.to_owned(),
            row.frontends.iter().map(at).collect::<Vec<_>>().join(" "),
            row.active.to_string(),
            row.draining.to_string(),
            affinity,
        ]);
    }
    table.render()
}

#[cfg(test)]
pub(super) mod tests {
    use netlb_common::backend::BackendValue;
    use netlb_common::frontend::{FrontendKey, FrontendValue};
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
        let (tables, names) = world();
        let want = "\
SERVICE             FAMILY  FRONTEND                ACTIVE  DRAINING  SESSION
service#2           ipv6    [fd00:10:96::2]:53/UDP  0       0         -
shop/frontend:http  ipv4    10.96.0.1:80/TCP        1       1         600 s
";
        assert_eq!(table(&rows(&tables, &names)), want);
    }
}
