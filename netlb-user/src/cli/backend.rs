//! `netlb backend list`: where each Service port sends its flows, and how many it sent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netlb_common::backend::{flags, state};
use netlb_common::frontend::FrontendKey;
use netlb_common::proto;
use serde::Serialize;

use super::Paths;
use super::output::{Format, print, print_json};
use super::table::TextTable;
use crate::plan::Names;
use crate::store::{KernelStore, MapStore as _, StoreError, Tables};

#[derive(Args, Debug)]
pub(super) struct BackendArgs {
    #[command(subcommand)]
    command: BackendCommand,
}

#[derive(Subcommand, Debug)]
enum BackendCommand {
    /// One line a backend of a Service port
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

/// A backend of a Service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Row {
    /// `namespace/name:port`, without the colon if the port has no name.
    service: String,
    /// Ports of the Service that lead here.
    vip_ports: BTreeSet<u16>,
    family: &'static str,
    address: IpAddr,
    port: u16,
    protocol: &'static str,
    /// `active`, `draining` or `removed`.
    state: &'static str,
    /// `namespace/name` of the pod at the address, if known.
    pod: Option<String>,
    /// It is on this node.
    local: bool,
    /// Lists of its Service port that it stands in: `cluster`, `local`.
    lists: Vec<&'static str>,
    /// New flows it was given, by packets and by sockets.
    flows: u64,
}

pub(super) fn run(args: &BackendArgs) -> anyhow::Result<ExitCode> {
    let BackendCommand::List(args) = &args.command;
    let store = KernelStore::open(&args.paths.pins())?;
    let rows = rows(&store.read()?, &args.paths.names(), |id| store.flows(id))?;
    match args.output {
        Format::Json => print_json(&rows)?,
        Format::Table => print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(
    tables: &Tables,
    names: &Names,
    flows: impl Fn(u32) -> Result<u64, StoreError>,
) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    for (id, value) in tables.backends.iter().filter(|(_, value)| value.state != state::FREE) {
        let address = value.addr.to_ip();
        let own = |key: &FrontendKey| !key.is_address() && !key.is_node_port();
        let vips = tables.frontends.iter().filter(|(key, to)| own(key) && to.service == value.service);
        let lists = [(flags::CLUSTER_LIST, "cluster"), (flags::LOCAL_LIST, "local")];
        rows.push(Row {
            service: names.service(value.service),
            vip_ports: vips.map(|(key, _)| key.port().get()).collect(),
            family: if address.is_ipv4() { "ipv4" } else { "ipv6" },
            address,
            port: value.port.get(),
            protocol: proto::name(value.proto),
            state: state::name(value.state),
            pod: names.pod(address).map(str::to_owned),
            local: value.endpoint != 0 || value.flags & flags::ON_NODE != 0,
            lists: lists.into_iter().filter(|(bit, _)| value.flags & bit != 0).map(|(_, name)| name).collect(),
            flows: flows(*id)?,
        });
    }
    rows.sort_by(|a, b| {
        (&a.service, a.family, a.address, a.port, a.protocol)
            .cmp(&(&b.service, b.family, b.address, b.port, b.protocol))
    });
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let mut table = TextTable::new(&["SERVICE", "BACKEND", "POD", "STATE", "WHERE", "LISTS", "FLOWS"]);
    for row in rows {
        table.row([
            row.service.clone(),
            format!("{}/{}", SocketAddr::new(row.address, row.port), row.protocol),
            row.pod.clone().unwrap_or_default(),
            row.state.to_owned(),
            if row.local { "this node" } else { "elsewhere" }.to_owned(),
            row.lists.join(","),
            row.flows.to_string(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::super::service::tests::world;
    use super::*;

    #[test]
    fn backends_with_their_flows_and_without_free_ids() {
        let (mut tables, mut names) = world();
        if let Some(first) = tables.backends.get_mut(&1) {
            first.flags = flags::ON_NODE | flags::CLUSTER_LIST | flags::LOCAL_LIST;
        }
        names.pods.insert("10.244.1.5".parse().expect("an address"), "shop/web-0".to_owned());
        let rows = rows(&tables, &names, |id| Ok(u64::from(id) * 10)).expect("no store fails here");
        let want = "\
SERVICE             BACKEND              POD         STATE     WHERE      LISTS          FLOWS
shop/frontend:http  10.244.1.5:8080/TCP  shop/web-0  active    this node  cluster,local  10
shop/frontend:http  10.244.1.6:8080/TCP  -           draining  elsewhere  -              20
shop/frontend:http  10.244.1.7:8080/TCP  -           removed   elsewhere  -              30
";
        assert_eq!(table(&rows), want);
        let json = serde_json::to_value(&rows).expect("JSON");
        assert_eq!(json[0]["service"], "shop/frontend:http");
        assert_eq!(json[0]["vip_ports"], serde_json::json!([80]));
        assert_eq!((&json[0]["family"], &json[0]["address"]), (&"ipv4".into(), &"10.244.1.5".into()));
        assert_eq!((&json[0]["port"], &json[0]["flows"]), (&8080.into(), &10.into()));
        assert_eq!((&json[0]["protocol"], &json[0]["state"]), (&"TCP".into(), &"active".into()));
    }
}
