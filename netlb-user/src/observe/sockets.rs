//! Connected UDP sockets of this node whose backend went: nothing would ever tell them, so they are closed under their owners' hands
//! (ECONNABORTED at the next call), as kube-proxy users know it from newer CNIs. The owner connects again and reaches a backend that is there.

use std::collections::BTreeSet;
use std::io;

use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::{Addr, Port, proto};

use crate::bpf::table::Table;
use crate::netlink::{Netlink, Request, retry};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// A connected UDP socket is in TCP's state "established".
const CONNECTED: u32 = 1 << 1;

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SocketId {
    sport: u16,
    dport: u16,
    src: [u32; 4],
    dst: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DiagRequest {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// Bytes of `struct inet_diag_msg` before its socket id.
const ANSWER_ID: usize = 4;

/// A backend as sockets name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UdpBackend {
    pub addr: Addr,
    pub port: Port,
}

/// Destroys the connected UDP sockets, in the calling thread's network namespace, that the socket hooks sent to one of `gone`. Sockets that
/// connected to a backend's own address by themselves are left alone: the table of translated sockets does not know them. Returns how many.
///
/// # Errors
/// The kernel's: EOPNOTSUPP without CONFIG_INET_DIAG_DESTROY.
pub fn destroy(gone: &BTreeSet<UdpBackend>, sockets: &Table<SocketKey, SocketValue>) -> io::Result<usize> {
    if gone.is_empty() {
        return Ok(0);
    }
    let mut netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let header = DiagRequest {
            family: family as u8,
            protocol: proto::UDP,
            extensions: 0,
            pad: 0,
            states: CONNECTED,
            id: bytemuck::Zeroable::zeroed(),
        };
        let found = retry(|| {
            let mut found = Vec::new();
            let request = Request::new(SOCK_DIAG_BY_FAMILY, bytemuck::bytes_of(&header));
            netlink.dump(request, |_, payload| {
                found.extend(socket_id(payload).filter(|id| gone.contains(&peer(family, id))));
            })?;
            Ok(found)
        })?;
        for id in found {
            let at = peer(family, &id);
            let cookie = u64::from(id.cookie[0]) | u64::from(id.cookie[1]) << 32;
            let key = SocketKey { cookie, addr: at.addr, tail: u64::from(at.port.0) | u64::from(proto::UDP) << 16 };
            if sockets.get(&key)?.is_none() {
                continue;
            }
            let request = DiagRequest { id, ..header };
            match netlink.one(Request::new(SOCK_DESTROY, bytemuck::bytes_of(&request))) {
                Ok(_) => destroyed += 1,
                // Its owner closed it meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(destroyed)
}

fn socket_id(payload: &[u8]) -> Option<SocketId> {
    Some(bytemuck::pod_read_unaligned(payload.get(ANSWER_ID..ANSWER_ID + size_of::<SocketId>())?))
}

/// Whom a socket talks to. An IPv6 socket may talk to an IPv4 address, as a v4-mapped one: the same key.
fn peer(family: i32, id: &SocketId) -> UdpBackend {
    let [a, b, c, d] = id.dst.map(u64::from);
    let addr = if family == libc::AF_INET { Addr::v4(id.dst[0]) } else { Addr::v6(a | b << 32, c | d << 32) };
    UdpBackend { addr, port: Port(id.dport) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn records_are_the_kernels() {
        assert_eq!((size_of::<SocketId>(), size_of::<DiagRequest>()), (48, 56));
    }

    fn id(dst: [u8; 16]) -> SocketId {
        let mut id: SocketId = bytemuck::Zeroable::zeroed();
        id.dst = bytemuck::pod_read_unaligned(&dst);
        id.dport = u16::from_ne_bytes([0x1f, 0x90]);
        id
    }

    #[test]
    fn peers_of_both_families_as_the_maps_key_them() {
        let v4 = [10, 244, 0, 5];
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&v4);
        let plain = peer(libc::AF_INET, &id(bytes));
        assert_eq!((plain.addr.to_ip(), plain.port.get()), (IpAddr::from(v4), 8080));
        let mapped = std::net::Ipv4Addr::from(v4).to_ipv6_mapped();
        assert_eq!(peer(libc::AF_INET6, &id(mapped.octets())), plain);
        let v6: std::net::Ipv6Addr = "fd00:244::5".parse().expect("an address");
        assert_eq!(peer(libc::AF_INET6, &id(v6.octets())).addr.to_ip(), IpAddr::from(v6));
    }

    #[test]
    fn the_socket_id_follows_four_bytes() {
        let mut payload = vec![10, 1, 0, 0];
        payload.extend(bytemuck::bytes_of(&id([7; 16])));
        assert_eq!(socket_id(&payload), Some(id([7; 16])));
        assert_eq!(socket_id(&payload[..20]), None);
    }
}
