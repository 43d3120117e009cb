//! connect() and friends on the node: the VIP is replaced before the first packet, so packets cost nothing.
//!
//! A UDP socket that sends without connecting keeps the backend it was given per VIP, as conntrack would keep it; a socket whose backend left
//! is given another at its next send.

use netlb_common::backend::state;
use netlb_common::config::{Config, flags};
use netlb_common::frontend::FrontendKey;
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::{Addr, Port, Reason, hash};

use crate::service::{self, Address};
use crate::tables::Tables;

/// The address a socket talks to, as the hook shows it.
pub trait Destination {
    fn addr(&self) -> Addr;
    fn port(&self) -> Port;
    fn proto(&self) -> u8;
    fn set(&mut self, addr: Addr, port: Port);
    /// Socket cookie.
    fn cookie(&self) -> u64;
    /// Cookie of the socket's network namespace.
    fn netns(&self) -> u64;
}

/// What connect() or sendto() returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Goes on, perhaps to another address.
    Allow,
    /// Fails with ECONNREFUSED.
    Refused,
    /// Fails with EHOSTUNREACH: a connect hook cannot drop in silence.
    Unreachable,
}

/// Marks the entry of `SOCKETS` that remembers a VIP's backend rather than a backend's VIP.
const FORWARD: u64 = 1 << 24;

#[inline(always)]
fn tail(port: Port, proto: u8) -> u64 {
    port.0 as u64 | (proto as u64) << 16
}

/// Is this socket ours to translate?
#[inline(always)]
fn config<'t, D: Destination, T: Tables>(d: &D, t: &'t T) -> Option<&'t Config> {
    t.config().filter(|c| c.flags & flags::SOCKET_ALL != 0 || c.netns_cookie == d.netns())
}

/// connect(), and each sendmsg() of an unconnected UDP socket (`datagram`).
#[inline(always)]
pub fn outgoing<D: Destination, T: Tables>(d: &mut D, t: &T, datagram: bool) -> Answer {
    let Some(config) = config(d, t) else { return Answer::Allow };
    let (vip, port, proto) = (d.addr(), d.port(), d.proto());
    let Some(frontend) = t.frontend(&FrontendKey::new(vip, port, proto)) else {
        return match service::address(t, config, vip) {
            Address::Foreign => Answer::Allow,
            Address::Vip => {
                t.count(Reason::SOCKET_UNDEFINED_PORT);
                Answer::Refused
            }
            Address::Unallocated => {
                t.count(Reason::SOCKET_UNALLOCATED);
                Answer::Unreachable
            }
        };
    };
    let cookie = d.cookie();
    let forward = SocketKey { cookie, addr: vip, tail: tail(port, proto) | FORWARD };
    let kept = match t.socket(&forward) {
        Some(last) if datagram => t
            .backend(last.backend)
            .filter(|b| b.generation == last.backend_generation && matches!(b.state, state::ACTIVE | state::DRAINING))
            .map(|_| last.backend),
        _ => None,
    };
    let now = t.now();
    // The node has no single address before it connects: its session is its network namespace's.
    let client = Addr { hi: d.netns(), lo: 0 };
    let flow = (hash::words(config.seed, cookie, forward.tail ^ now as u64) >> 32) as u32;
    let id = match kept {
        Some(id) => id,
        None => match service::choose(t, frontend, client, flow, config.hz, now) {
            Some(id) => id,
            None => {
                t.count(Reason::SOCKET_NO_ENDPOINTS);
                return Answer::Refused;
            }
        },
    };
    let Some(b) = t.backend(id) else { return Answer::Refused };
    if kept.is_none() {
        t.count(Reason::SOCKET_TRANSLATED);
        t.count_flow(id);
        if datagram {
            t.set_socket(
                &forward,
                &SocketValue { addr: b.addr, tail: tail(b.port, 0), backend: id, backend_generation: b.generation },
            );
        }
        let back = SocketKey { cookie, addr: b.addr, tail: tail(b.port, proto) };
        t.set_socket(
            &back,
            &SocketValue { addr: vip, tail: tail(port, 0), backend: id, backend_generation: b.generation },
        );
    }
    d.set(b.addr, b.port);
    Answer::Allow
}

/// recvmsg() and getpeername(): the address that the socket's owner believes in.
#[inline(always)]
pub fn incoming<D: Destination, T: Tables>(d: &mut D, t: &T) {
    if config(d, t).is_none() {
        return;
    }
    let key = SocketKey { cookie: d.cookie(), addr: d.addr(), tail: tail(d.port(), d.proto()) };
    if let Some(vip) = t.socket(&key) {
        let (addr, port) = (vip.addr, Port(vip.tail as u16));
        d.set(addr, port);
    }
}
