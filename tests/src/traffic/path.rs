//! The path of packets: MTUs smaller than the sender's, TTLs that end, and the ICMP errors that tell of them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Result, anyhow, bail, ensure};
use netlb_common::Reason;
use netlb_testnode::address::Family;
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;
use netlb_testnode::{PodNetwork, hostile};
use nix::errno::Errno;
use nix::sys::socket::{
    self, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, setsockopt, sockopt,
};

use super::services::service_by_hand;
use crate::bulk;
use crate::rig::Rig;
use crate::sockets;

pub(crate) const NARROW: u32 = 1400;
const MB: u64 = 1 << 20;
const ANY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// A host two routers away: outside ═ narrow wire ═ hop ═ wide wire ═ far.
pub(crate) struct Beyond {
    _hop: NetNs,
    pub(crate) far: NetNs,
    pub(crate) addresses: [IpAddr; 2],
}

impl Beyond {
    pub(crate) fn new(rig: &Rig) -> Result<Self> {
        let (hop, far) = (NetNs::create()?, NetNs::create()?);
        hostile::quiet_ipv6(&hop)?;
        hostile::router(&hop)?;
        hostile::quiet_ipv6(&far)?;
        let (mut outer, mut middle, mut inner) =
            (Links::open(rig.node.outside().place.net())?, Links::open(&hop)?, Links::open(&far)?);
        outer.add_veth("hop", None, NARROW, "near", &hop)?;
        middle.add_veth("far", None, 1500, "eth0", &far)?;
        // Device, its networks' third group, its own last number.
        for (links, device, net, host) in
            [(&mut outer, "hop", 77, 1), (&mut middle, "near", 77, 2), (&mut inner, "eth0", 78, 2)]
        {
            links.up(device)?;
            let [v4, v6] = beyond(net, host);
            links.add_address(device, v4, 24)?;
            links.add_address(device, v6, 64)?;
        }
        middle.up("far")?;
        let [v4, v6] = beyond(78, 1);
        middle.add_address("far", v4, 24)?;
        middle.add_address("far", v6, 64)?;
        for (links, device, to, prefixes, gateway) in [
            (&mut outer, "hop", beyond(78, 0), [24, 64], beyond(77, 2)),
            (&mut middle, "near", [ANY_V4, ANY_V6], [0, 0], beyond(77, 1)),
            (&mut inner, "eth0", [ANY_V4, ANY_V6], [0, 0], beyond(78, 1)),
        ] {
            for ((to, prefix), gateway) in to.into_iter().zip(prefixes).zip(gateway) {
                links.add_route(to, prefix, Some(gateway), device)?;
            }
        }
        Ok(Self { _hop: hop, far, addresses: beyond(78, 2) })
    }
}

/// An address of each family in one of the networks beyond.
fn beyond(net: u8, host: u8) -> [IpAddr; 2] {
    [[192, 168, net, host].into(), [0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)].into()]
}

pub(super) fn beyond_the_node(rig: &Rig) -> Result<()> {
    let beyond = Beyond::new(rig)?;
    let _server = bulk::Server::start(&beyond.far, 7000)?;
    rig.apply(&service_by_hand("far", beyond.addresses, 7000))?;
    for family in Family::BOTH {
        let vip = rig.frontend("far", family, 80)?;
        let (_, translated) = rig.growth(Reason::ICMP_TRANSLATED, || {
            rig.inside("client", || bulk::transfer(vip, MB, 0))?;
            rig.inside("client", || bulk::transfer(vip, 0, MB))
        })?;
        ensure!(translated > 0, "no ICMP error was translated, though the path to {vip} is narrower than its ends");
        let mtu = rig.inside("client", || sockets::path_mtu(vip))?;
        ensure!(mtu == NARROW, "the client sends packets of {mtu} bytes to {vip}, the path takes {NARROW}");
    }
    Ok(())
}

/// A pod whose wire takes smaller packets on the node's side than the pod believes. What the pod itself sends must be small:
/// a veth drops what its other end takes for too large.
fn narrow_pod(rig: &Rig, name: &str) -> Result<()> {
    rig.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c}}]}}\n"
    ))?;
    let pod = rig.pod(name)?;
    let device = pod.device().ok_or_else(|| anyhow!("{name} has no device"))?;
    Links::open(rig.node.node(1)?.net())?.set_mtu(device, NARROW)
}

pub(super) fn narrow_backend(rig: &Rig) -> Result<()> {
    narrow_pod(rig, "narrow-backend")?;
    let pod = rig.pod("narrow-backend")?;
    let _server = bulk::Server::start(pod.net(), 7000)?;
    rig.apply(&service_by_hand("narrow-backend", pod.addresses().both(), 7000))?;
    for family in Family::BOTH {
        let vip = rig.frontend("narrow-backend", family, 80)?;
        // Until the agent has seen the new MTU, the redirect road delivers what the pod takes anyway.
        let before = rig.counter(Reason::ICMP_TRANSLATED)?;
        let mut failed = None;
        rig.eventually("large packets to a small device are reported", || {
            failed = rig.inside("client", || bulk::transfer(vip, MB, 0)).err();
            ensure!(failed.is_some() || rig.counter(Reason::ICMP_TRANSLATED)? > before, "no ICMP error was translated");
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error.context(format!("a transfer to {vip}, which takes packets of {NARROW} bytes")));
        }
        let mtu = rig.inside("client", || sockets::path_mtu(vip))?;
        ensure!(mtu == NARROW, "the client sends packets of {mtu} bytes to {vip}, the backend takes {NARROW}");
    }
    Ok(())
}

pub(super) fn narrow_client(rig: &Rig) -> Result<()> {
    narrow_pod(rig, "narrow-client")?;
    rig.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: wide}\nspec: {containers: [{name: c}]}\n")?;
    let (client, wide) = (rig.pod("narrow-client")?, rig.pod("wide")?);
    let _server = bulk::Server::start(wide.net(), 7000)?;
    rig.apply(&service_by_hand("wide", wide.addresses().both(), 7000))?;
    for family in Family::BOTH {
        let vip = rig.frontend("wide", family, 80)?;
        let back = SocketAddr::new(client.addresses().of(family), 9);
        let mut failed = None;
        rig.eventually("large answers to a small device are reported", || {
            failed = rig.inside("narrow-client", || bulk::transfer(vip, 0, MB)).err();
            let mtu = rig.inside("wide", || sockets::path_mtu(back))?;
            ensure!(
                failed.is_some() || mtu == NARROW,
                "the backend sends packets of {mtu} bytes to {back}, which takes {NARROW}"
            );
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(
                error.context(format!("a transfer from {vip} to a client that takes packets of {NARROW} bytes"))
            );
        }
    }
    Ok(())
}

pub(super) fn ttl(rig: &Rig) -> Result<()> {
    // Between two ports of one bridge the stack road bridges: no router, no TTL.
    let bridged = rig.style.pods == PodNetwork::Bridge && !rig.style.redirects();
    for family in Family::BOTH {
        let tcp = rig.frontend("solo", family, 80)?;
        let udp = rig.frontend("solo", family, 53)?;
        if bridged {
            rig.inside("client", || one_hop(udp)).map(drop)?;
            continue;
        }
        let result = rig.inside("client", || {
            let stream = socket::socket(
                if tcp.is_ipv4() { socket::AddressFamily::Inet } else { socket::AddressFamily::Inet6 },
                socket::SockType::Stream,
                socket::SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            set_ttl(&stream, tcp, 1)?;
            Ok(socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(tcp))?)
        });
        sockets::expect_errno(result, Errno::EHOSTUNREACH, &format!("connect to {tcp} with a TTL of 1"))?;
        match rig.inside("client", || one_hop(udp))? {
            Hop::Answered => bail!("a datagram to {udp} with a TTL of 1 was delivered beyond a router"),
            Hop::Expired(quoted) => {
                ensure!(quoted == udp, "time exceeded for a packet to {quoted}, sent was one to {udp}")
            }
        }
    }
    Ok(())
}

pub(crate) enum Hop {
    Answered,
    /// Time exceeded, for a packet that was sent to this address.
    Expired(SocketAddr),
}

/// What a traceroute's first packet learns: a datagram with a TTL of 1.
pub(crate) fn one_hop(to: SocketAddr) -> Result<Hop> {
    let socket = sockets::udp(None, to)?;
    set_ttl(&socket, to, 1)?;
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    match sockets::ask_by(&socket, "how far?") {
        Ok(_) => return Ok(Hop::Answered),
        Err(error) if sockets::errno(&error) == Some(Errno::EHOSTUNREACH) => {}
        Err(error) => return Err(error.context(format!("a datagram to {to} with a TTL of 1"))),
    }
    let mut buffer = [0; 256];
    let mut part = [std::io::IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE;
    let time_exceeded = |message: ControlMessageOwned| {
        if let ControlMessageOwned::Ipv4RecvErr(error, _) = message {
            (error.ee_type, error.ee_code) == (11, 0)
        } else if let ControlMessageOwned::Ipv6RecvErr(error, _) = message {
            (error.ee_type, error.ee_code) == (3, 0)
        } else {
            false
        }
    };
    let fd = socket.as_raw_fd();
    let (quoted, told) = if to.is_ipv4() {
        let message = socket::recvmsg::<SockaddrIn>(fd, &mut part, Some(&mut control), flags)?;
        let quoted = message.address.map(|address| SocketAddr::new(address.ip().into(), address.port()));
        (quoted, message.cmsgs()?.any(time_exceeded))
    } else {
        let message = socket::recvmsg::<SockaddrIn6>(fd, &mut part, Some(&mut control), flags)?;
        let quoted = message.address.map(|address| SocketAddr::new(address.ip().into(), address.port()));
        (quoted, message.cmsgs()?.any(time_exceeded))
    };
    ensure!(told, "the error about a datagram to {to} is not \"time exceeded\"");
    quoted.map(Hop::Expired).ok_or_else(|| anyhow!("an error about a packet to nobody"))
}

fn set_ttl(socket: &impl std::os::fd::AsFd, to: SocketAddr, ttl: i32) -> Result<()> {
    if to.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4Ttl, &ttl)?;
    } else {
        setsockopt(socket, sockopt::Ipv6Ttl, &ttl)?;
    }
    Ok(())
}
