//! The path of packets from and to the outside: wires smaller than both ends believe, TTLs that end, and the ICMP errors that
//! tell of them.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use netlb_common::Reason;
use netlb_testnode::address::{self, Family};
use netlb_testnode::hostile;
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;

use super::{beyond, door, outside, service};
use crate::bulk;
use crate::rig::Rig;
use crate::sockets;
use crate::traffic::path::{Beyond, Hop, NARROW, one_hop};

const MB: u64 = 1 << 20;
/// The networks that the wires of these cases have.
const PHONE: u8 = 75;

/// A host whose own wire is narrow, and knows it.
fn phone(rig: &Rig) -> Result<NetNs> {
    let net = NetNs::create()?;
    hostile::quiet_ipv6(&net)?;
    let (mut outer, mut inner) = (Links::open(rig.node.outside().place.net())?, Links::open(&net)?);
    outer.add_veth("phone", None, NARROW, "eth0", &net)?;
    for (links, device, host) in [(&mut outer, "phone", 1), (&mut inner, "eth0", 2)] {
        links.up(device)?;
        let [v4, v6] = beyond(PHONE, host);
        links.add_address(device, v4, 24)?;
        links.add_address(device, v6, 64)?;
    }
    for (gateway, any) in beyond(PHONE, 1).into_iter().zip([ANY_V4, ANY_V6]) {
        inner.add_route(any, 0, Some(gateway), "eth0")?;
    }
    Ok(net)
}

const ANY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// The pods that serve transfers, with their NodePorts.
const SERVERS: [(&str, u16); 2] = [("near", 30_100), ("remote", 30_101)];

fn servers(rig: &Rig) -> Result<Vec<bulk::Server>> {
    let servers =
        SERVERS.map(|(pod, _)| bulk::Server::start(rig.pod(pod)?.net(), 7000)).into_iter().collect::<Result<_>>()?;
    for (pod, port) in SERVERS {
        rig.apply(&service(rig, pod, &[pod], "TCP", port)?)?;
    }
    Ok(servers)
}

pub(super) fn narrow_client(rig: &Rig) -> Result<()> {
    let _servers = servers(rig)?;
    let phone = phone(rig)?;
    for (pod, port) in SERVERS {
        for family in Family::BOTH {
            let to = door(family, port);
            phone.run(|| bulk::transfer(to, MB, MB))?.with_context(|| format!("by {to} to the pod {pod}"))?;
        }
    }
    Ok(())
}

pub(super) fn narrow_path(rig: &Rig) -> Result<()> {
    let _servers = servers(rig)?;
    let beyond = Beyond::new(rig)?;
    for (pod, port) in SERVERS {
        for family in Family::BOTH {
            let to = door(family, port);
            let (_, translated) = rig.growth(Reason::ICMP_TRANSLATED, || {
                beyond.far.run(|| bulk::transfer(to, 0, MB))?.with_context(|| format!("by {to} from the pod {pod}"))
            })?;
            ensure!(translated > 0, "no ICMP error was translated, though answers by {to} are too large for the path");
            // As the pod sees it: the client itself, or the node that stands in for it.
            let client = beyond.addresses.into_iter().find(|address| Family::of(*address) == family);
            let seen = if pod == "near" { client.context("no address")? } else { address::node(1).of(family) };
            let mtu = rig.inside(pod, || sockets::path_mtu((seen, 9).into()))?;
            ensure!(mtu == NARROW, "the pod {pod} sends packets of {mtu} bytes to {seen}, the path takes {NARROW}");
        }
    }
    Ok(())
}

pub(super) fn ttl(rig: &Rig) -> Result<()> {
    let doors = [("near", 30_110), ("remote", 30_111)];
    for (pod, port) in doors {
        rig.apply(&service(rig, &format!("{pod}-ttl"), &[pod], "UDP", port)?)?;
        for family in Family::BOTH {
            let to = door(family, port);
            match outside(rig, || one_hop(to)).with_context(|| format!("to the pod {pod}"))? {
                Hop::Answered => bail!("a datagram to {to} with a TTL of 1 was delivered beyond the node"),
                Hop::Expired(quoted) => {
                    ensure!(quoted == to, "time exceeded for a packet to {quoted}, sent was one to {to}")
                }
            }
        }
    }
    Ok(())
}
