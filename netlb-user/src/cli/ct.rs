//! `netlb ct list`: the flows netlb tracks, one line a direction.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netlb_common::conntrack::{CtKey, CtValue, flags, state};
use netlb_common::maps::name;
use netlb_common::proto;
use serde::Serialize;

use super::Paths;
use super::output::{Format, print, print_json};
use super::table::TextTable;
use crate::bpf::table::Table;
use crate::plan::Names;

#[derive(Args, Debug)]
pub(super) struct CtArgs {
    #[command(subcommand)]
    command: CtCommand,
}

#[derive(Subcommand, Debug)]
enum CtCommand {
    /// One line a direction of a flow
    List(ListArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    paths: Paths,
    /// Only flows to or from this address
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One direction of a flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Row {
    service: String,
    protocol: &'static str,
    /// As the packet arrives.
    src: SocketAddr,
    dst: SocketAddr,
    /// As it goes on.
    new_src: SocketAddr,
    new_dst: SocketAddr,
    /// `forward` (from the client) or `reply`.
    direction: &'static str,
    state: &'static str,
    road: &'static str,
    /// Both ends have spoken: the entry is in `CT`, which no flood evicts.
    assured: bool,
    port_moved: bool,
    packets: u64,
    bytes: u64,
}

pub(super) fn run(args: &CtArgs) -> anyhow::Result<ExitCode> {
    let CtCommand::List(args) = &args.command;
    let mut rows = rows(&args.paths, &args.paths.names())?;
    if let Some(ip) = args.address {
        rows.retain(|row| [row.src, row.dst, row.new_src, row.new_dst].iter().any(|at| at.ip() == ip));
    }
    match args.output {
        Format::Json => print_json(&rows)?,
        Format::Table => print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Every entry of both maps, in a stable order.
pub(super) fn rows(paths: &Paths, names: &Names) -> anyhow::Result<Vec<Row>> {
    let pins = paths.pins();
    let mut rows = Vec::new();
    for (map, assured) in [(name::CT, true), (name::CT_NEW, false)] {
        let entries = Table::<CtKey, CtValue>::open(&pins, map)?.entries()?;
        rows.extend(entries.iter().map(|(key, value)| row(key, value, assured, names)));
    }
    rows.sort();
    Ok(rows)
}

fn row(key: &CtKey, value: &CtValue, assured: bool, names: &Names) -> Row {
    let after = CtKey::from_words(value.src, value.dst, value.ports, key.proto());
    let is = |bit: u16| value.flags & bit != 0;
    let road = if is(flags::HAIRPIN) {
        "hairpin"
    } else if is(flags::REDIRECT) {
        "redirect"
    } else if is(flags::BRIDGED) {
        "bridged"
    } else {
        "stack"
    };
    Row {
        service: names.service(value.service),
        protocol: proto::name(key.proto()),
        src: SocketAddr::new(key.src.to_ip(), key.sport().get()),
        dst: SocketAddr::new(key.dst.to_ip(), key.dport().get()),
        new_src: SocketAddr::new(after.src.to_ip(), after.sport().get()),
        new_dst: SocketAddr::new(after.dst.to_ip(), after.dport().get()),
        direction: if is(flags::REPLY) { "reply" } else { "forward" },
        state: state::name(value.state),
        road,
        assured,
        port_moved: is(flags::PORT_MOVED),
        packets: value.packets,
        bytes: value.bytes,
    }
}

fn table(rows: &[Row]) -> String {
    let headings = ["SERVICE", "PROTO", "STATE", "ROAD", "FROM", "TO", "BECOMES FROM", "TO", "PACKETS", "BYTES"];
    let mut table = TextTable::new(&headings);
    for row in rows {
        table.row([
            row.service.clone(),
            row.protocol.to_owned(),
            row.state.to_owned(),
            row.road.to_owned(),
            row.src.to_string(),
            row.dst.to_string(),
            row.new_src.to_string(),
            row.new_dst.to_string(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use netlb_common::conntrack::pack_ports;
    use netlb_common::{Addr, Port};

    use super::*;

    #[test]
    fn a_translated_direction_shows_before_and_after() {
        let ip = |text: &str| Addr::from_ip(text.parse().expect("an address"));
        let key = CtKey::new(ip("10.244.1.2"), ip("10.96.0.1"), Port::new(40000), Port::new(80), proto::TCP);
        let value = CtValue {
            src: ip("10.244.1.2"),
            dst: ip("10.244.1.5"),
            ports: pack_ports(Port::new(40000), Port::new(8080)),
            flags: flags::REDIRECT,
            state: state::ESTABLISHED,
            service: 9,
            packets: 3,
            bytes: 180,
            ..bytemuck::Zeroable::zeroed()
        };
        let row = row(&key, &value, true, &Names::default());
        assert_eq!((row.src.to_string(), row.dst.to_string()), ("10.244.1.2:40000".into(), "10.96.0.1:80".into()));
        assert_eq!(row.new_dst.to_string(), "10.244.1.5:8080");
        assert_eq!((row.direction, row.state, row.road), ("forward", "ESTABLISHED", "redirect"));
        assert_eq!(row.service, "service#9");
    }
}
