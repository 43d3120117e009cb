//! `netlb trace`: what would happen to this packet, here, now.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use netlb_common::proto;

use super::Paths;
use super::output::{Format, print, print_json};
use crate::bpf::clock;
use crate::observe::status;
use crate::store::{KernelStore, MapStore as _};
use crate::trace::ask::Question;
use crate::trace::frame::TCP_FLAGS;
use crate::trace::live::Maps;
use crate::trace::network;
use crate::trace::overlay::Overlay;
use crate::trace::words::Words;

const EXAMPLES: &str = "\
Examples:
  netlb trace --from shop/cart --to web:http             a pod connects to a Service by its cluster IP
  netlb trace --from node --to 10.96.0.10:53 --protocol udp
                                                         a process of this node asks the cluster's DNS
  netlb trace --from outside --to node:30080             a client outside comes to a NodePort of this node
  netlb trace --from 203.0.113.9 --to 192.0.2.80:443     this client, to a load balancer IP
  netlb trace --from 10.244.1.5:40312 --to web:80 --flags ack
                                                         the next packet of a connection that `netlb ct list` shows
The datapath's own code answers, over the live maps; nothing is sent, and nothing is changed.";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    paths: Paths,
    /// Who sends: a pod (`namespace/name` or `name`), `node`, `outside`, or an address with or without a port
    #[arg(long, value_name = "POD|node|outside|IP[:PORT]")]
    from: String,
    /// To whom: an address and port, `node:PORT`, or a Service with its port's name or number (needless if it has one)
    #[arg(long, value_name = "IP:PORT|SERVICE[:PORT]")]
    to: String,
    /// The protocol; the Service's, else TCP
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// TCP flags; for SCTP the chunk that means the same
    #[arg(long, value_name = "FLAG", value_delimiter = ',', default_value = "syn", value_parser = flag)]
    flags: Vec<u8>,
    /// Bytes of the IP packet; just its headers if less
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    size: u16,
    /// The uplink by which a packet from outside comes; the one its answers would leave by if not said
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// IPv6, where the names leave a choice
    #[arg(short = '6', long)]
    ipv6: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

fn flag(text: &str) -> Result<u8, String> {
    let named = TCP_FLAGS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    named.map(|(_, bit)| *bit).ok_or_else(|| "one of syn, ack, fin, rst, psh".to_owned())
}

/// Exit code 0 whatever becomes of the packet: the question was answered.
pub(super) fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let pins = args.paths.pins();
    let tables = KernelStore::open(&pins)?.read()?;
    if tables.config.is_none() {
        bail!(
            "the maps under {} hold no configuration yet; is the agent ready? see `netlb status`",
            pins.root().display()
        );
    }
    let maps = Maps::open(&pins)?;
    let names = args.paths.names();
    let network = network::Live::open().context("the node's devices cannot be listed")?;
    let now = clock::jiffies().context("the kernel's clock; run netlb as root")?;
    let overlay = Overlay::new(&tables, &maps, now);
    let question = Question {
        from: args.from.clone(),
        to: args.to.clone(),
        proto: args.protocol.map(|protocol| match protocol {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        }),
        flags: args.flags.iter().fold(0, |flags, flag| flags | flag),
        size: args.size,
        device: args.device.clone(),
        ipv6: args.ipv6,
    };
    let trace = crate::trace::trace(&question, &overlay, &network, &names)?;
    maps.check().context("the maps cannot be read")?;
    let attached = attached(&args.paths.run_dir);
    let words = Words { names: &names, tables: &tables, network: &network, now, attached };
    let told = words.tell(&trace);
    match args.output {
        Format::Json => print_json(&told)?,
        Format::Table => print(&words.text(&told, &trace))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Devices with programs on them, as the agent last said.
fn attached(run_dir: &Path) -> Option<BTreeSet<u32>> {
    let status = status::read(run_dir).ok()?;
    let pods = status.devices.iter().filter(|device| device.attached).map(|device| device.ifindex);
    let uplinks = status.uplinks.iter().filter(|uplink| uplink.attached).map(|uplink| uplink.ifindex);
    Some(pods.chain(uplinks).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::frame::SYN;

    #[test]
    fn flags_go_by_their_names() {
        assert_eq!((flag("syn"), flag("ACK")), (Ok(SYN), Ok(16)));
        assert!(flag("urgent").is_err_and(|known| known.contains("psh")));
    }
}
