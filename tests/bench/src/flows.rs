//! Established flows: opened by packets of both ends through the programs, then looked for in the conntrack map.

use anyhow::{Context, Result, bail, ensure};
use netlb_bench_ebpf::target;
use netlb_common::conntrack::{CtKey, state};
use netlb_common::maps::{name, program as names};
use netlb_common::{Addr, Port};

use crate::frame::{self, ACK, L4, SYN, SYN_ACK, Tuple, Vary};
use crate::production::{BACKEND_PORT, Production, Road, SERVICE_PORT, XDP_PASS, XDP_REDIRECT};
use crate::world::{Family, Side, World};

/// Client port of fixed flows, outside the range of varied ones.
pub(crate) const FIXED_PORT: u16 = 0x8001;

/// Flows opened at a time: both entries of each must fit into `CT_NEW` until the answers come.
const CHUNK: u32 = 8_192;

/// A fixed flow to the Service, from the client.
pub(crate) fn to_service(family: Family) -> Tuple {
    Tuple { src: family.client(0), dst: family.vip(), sport: FIXED_PORT, dport: SERVICE_PORT }
}

/// A fixed flow to the server pod itself.
pub(crate) fn to_server(family: Family) -> Tuple {
    Tuple { src: family.client(0), dst: family.server(), sport: FIXED_PORT, dport: BACKEND_PORT }
}

/// Opens the fixed flow of a family and protocol: SYN, SYN-ACK, ACK, or a datagram and its answer.
///
/// # Errors
/// When a program does not let a packet through, or the flow is not established in `CT` afterwards.
pub(crate) fn establish(world: &World, netlb: &mut Production, road: Road, family: Family, l4: L4) -> Result<()> {
    world.enter()?;
    let (client, server) = (world.client, world.server);
    let request = |l4| frame::build(client.mac, client.pod_mac, to_service(family), l4);
    let answer = |l4| frame::build(server.mac, server.pod_mac, to_server(family).reversed(), l4);
    let (first, second, third) = match l4 {
        L4::Udp => (request(L4::Udp)?, answer(L4::Udp)?, None),
        L4::Tcp(_) => (request(L4::Tcp(SYN))?, answer(L4::Tcp(SYN_ACK))?, Some(request(L4::Tcp(ACK))?)),
    };
    // The client's packets leave through `from_pod`; answers too on the redirect road, on the stack road the client's `to_pod` translates them.
    let (there, back) = match road {
        Road::Xdp | Road::Redirect => (XDP_REDIRECT, (names::XDP_FROM_POD, server, XDP_REDIRECT)),
        Road::Stack => (XDP_PASS, (names::XDP_TO_POD, client, XDP_PASS)),
    };
    netlb.drive(names::XDP_FROM_POD, client, &first, there)?;
    netlb.drive(back.0, back.1, &second, back.2)?;
    if let Some(third) = third {
        netlb.drive(names::XDP_FROM_POD, client, &third, there)?;
    }
    let want = if l4 == L4::Udp { state::UDP_STREAM } else { state::ESTABLISHED };
    for tuple in [to_service(family), to_server(family).reversed()] {
        let key = key(tuple, l4);
        let Some(entry) = netlb.entry(name::CT, &key)? else {
            bail!("the flow {} is not in CT after packets of both ends", show(tuple));
        };
        ensure!(
            entry.state == want,
            "the flow {} is {} in CT where {} was expected",
            show(tuple),
            state::name(entry.state),
            state::name(want)
        );
        ensure!(netlb.entry(name::CT_NEW, &key)?.is_none(), "the flow {} is still in CT_NEW", show(tuple));
    }
    Ok(())
}

/// Opens `flows` UDP flows by datagrams of both ends. World and programs are of [`Road::Xdp`].
///
/// # Errors
/// When a packet is lost, or not all flows are established in `CT` afterwards.
pub(crate) fn establish_many(world: &mut World, netlb: &Production, family: Family, flows: u32) -> Result<()> {
    let before = netlb.established()?.len();
    let (there, back) = generators(family);
    let request = frame::build(world.client.mac, world.client.pod_mac, to_service(family), L4::Udp)?;
    let answer = frame::build(world.server.mac, world.server.pod_mac, to_server(family).reversed(), L4::Udp)?;
    // In order here, shuffled when measured: memory must not lie in the order of the packets.
    let sweep = Vary::Sweep { flows };
    let mut requests = frame::order(&request, L4::Udp, sweep, false, target::PROGRAM, 0);
    let mut answers = frame::order(&answer, L4::Udp, sweep, true, target::PROGRAM, 0);
    for first in (0..flows).step_by(CHUNK as usize) {
        let packets = CHUNK.min(flows - first);
        for (generator, order, side) in [(there, &mut requests, Side::Client), (back, &mut answers, Side::Server)] {
            let run = world.run(generator, order, side, packets).context("cannot open flows")?;
            ensure!(
                run.received == u64::from(packets),
                "only {} of {packets} packets that open flows arrived",
                run.received
            );
        }
    }
    let entries = netlb.established()?;
    let answered = entries.iter().filter(|(_, value)| value.state == state::UDP_STREAM).count();
    let want = before + 2 * flows as usize;
    ensure!(entries.len() == want, "CT has {} entries where {want} were expected", entries.len());
    ensure!(answered == want, "{answered} of {want} entries of CT are UDP_STREAM");
    Ok(())
}

/// Generators of UDP: the client's, the server's.
pub(crate) fn generators(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("udp4_out", "udp4_back"),
        Family::V6 => ("udp6_out", "udp6_back"),
    }
}

fn key(tuple: Tuple, l4: L4) -> CtKey {
    let (src, dst) = (Addr::from_ip(tuple.src), Addr::from_ip(tuple.dst));
    CtKey::new(src, dst, Port::new(tuple.sport), Port::new(tuple.dport), l4.proto())
}

fn show(tuple: Tuple) -> String {
    format!("{} port {} to {} port {}", tuple.src, tuple.sport, tuple.dst, tuple.dport)
}
