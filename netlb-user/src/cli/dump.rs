//! `netlb dump`: the maps as text that is equal for equal worlds.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::maps::name;
use netlb_common::proto;
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::{Addr, Port, Reason};

use super::output::print;
use super::{Paths, ct};
use crate::bpf::table::Table;
use crate::plan::Names;
use crate::store::{KernelStore, MapStore as _, dump};

#[derive(Args, Debug)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    paths: Paths,
    /// Only what the agent wrote: without conntrack, sessions, sockets and counters; for comparing before and after
    #[arg(long)]
    config_only: bool,
}

pub(super) fn run(args: &DumpArgs) -> anyhow::Result<ExitCode> {
    let store = KernelStore::open(&args.paths.pins())?;
    let tables = store.read()?;
    let mut text = dump::dump(&tables);
    if !args.config_only {
        let names = args.paths.names();
        for id in tables.backends.keys() {
            let flows = store.flows(*id)?;
            if let Some(b) = tables.backends.get(id).filter(|_| flows > 0) {
                let at = socket(b.addr, b.port, b.proto);
                let _ = writeln!(text, "flows {at} service={} {flows}", names.service(b.service));
            }
        }
        text.push_str(&learnt(&args.paths, &names)?);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What the datapath wrote.
fn learnt(paths: &Paths, names: &Names) -> anyhow::Result<String> {
    let pins = paths.pins();
    let mut lines = Vec::new();
    for row in ct::rows(paths, names)? {
        lines.push(format!("conntrack {}", serde_json::to_string(&row)?));
    }
    for (key, value) in Table::<AffinityKey, AffinityValue>::open(&pins, name::AFFINITY)?.entries()? {
        let client = if key.client.lo == 0 { "this node".to_owned() } else { key.client.to_ip().to_string() };
        lines.push(format!("session {client} service={} backend#{}", names.service(key.service), value.backend));
    }
    for (key, value) in Table::<SocketKey, SocketValue>::open(&pins, name::SOCKETS)?.entries()? {
        let (port, proto) = (Port(key.tail as u16), (key.tail >> 16) as u8);
        let (at, shown) = (socket(key.addr, port, proto), socket(value.addr, Port(value.tail as u16), proto));
        lines.push(format!("socket {:#x} {at} stands for {shown}", key.cookie));
    }
    lines.sort();
    let counters = Table::<u32, u64>::open(&pins, name::COUNTERS)?;
    for (reason, name, ..) in Reason::ALL {
        lines.push(format!("counter {name} {}", counters.sum(u32::from(reason.0))?));
    }
    Ok(lines.into_iter().fold(String::new(), |text, line| text + &line + "\n"))
}

fn socket(addr: Addr, port: Port, proto: u8) -> String {
    format!("{}/{}", std::net::SocketAddr::new(addr.to_ip(), port.get()), proto::name(proto))
}
