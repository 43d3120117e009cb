//! connect() and friends on the node: the VIP is replaced before the first packet, so packets cost nothing.
//!
//! A UDP socket that sends without connecting keeps the backend it was given per VIP, as conntrack would keep it; a socket whose backend left
//! is given another at its next send.

use netlb_common::backend::state;
use netlb_common::config::{Config, flags, pods};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::{Addr, Port, Reason, hash};

use crate::service::{self, Target};
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

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A process of the node: this hook is the base for it, and decides everything.
    Node,
    /// A pod, by its address. Only what its packets would come to as well is translated, the rest is left to them.
    Pod(Addr),
    /// Somebody netlb has nothing to do with.
    Stranger,
}

#[inline(always)]
fn owner<D: Destination, T: Tables>(d: &D, t: &T, config: &Config, v4: bool) -> Owner {
    let netns = d.netns();
    if config.netns_cookie == netns {
        return Owner::Node;
    }
    if config.flags & flags::SOCKET_ALL == 0 {
        return Owner::Stranger;
    }
    match t.client(netns).map(|pod| if v4 { pod.addr4 } else { pod.addr6 }) {
        Some(addr) if addr != Addr::UNSPECIFIED => Owner::Pod(addr),
        _ => Owner::Stranger,
    }
}

/// connect(), and each sendmsg() of an unconnected UDP socket (`datagram`).
#[inline(always)]
pub fn outgoing<D: Destination, T: Tables>(d: &mut D, t: &T, datagram: bool) -> Answer {
    let Some(config) = t.config() else { return Answer::Allow };
    let (vip, port, proto) = (d.addr(), d.port(), d.proto());
    let owner = owner(d, t, config, vip.is_v4());
    // The node has no single address before it connects: its primary one stands for it.
    let client = match owner {
        Owner::Stranger => return Answer::Allow,
        Owner::Pod(addr) => addr,
        Owner::Node if vip.is_v4() => config.node4,
        Owner::Node => config.node6,
    };
    let pod = owner != Owner::Node;
    let refused = |reason: Reason, answer: Answer| {
        if pod {
            return Answer::Allow;
        }
        t.count(reason);
        answer
    };
    let frontend = match service::target(t, config, vip, port, proto) {
        Target::Frontend(frontend) | Target::NodePort(frontend) => frontend,
        Target::Foreign => return Answer::Allow,
        Target::Undefined => return refused(Reason::SOCKET_UNDEFINED_PORT, Answer::Refused),
        Target::Unallocated => return refused(Reason::SOCKET_UNALLOCATED, Answer::Unreachable),
    };
    // Where its packets may be masqueraded a pod's socket is left alone: the backend must see the same source either way.
    if pod && (config.pods != pods::KNOWN || service::masquerades(config, frontend.flags, 0, true)) {
        return Answer::Allow;
    }
    if !service::in_range(t, frontend, client) {
        return refused(Reason::SOCKET_SOURCE_RANGE, Answer::Unreachable);
    }
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
    let id = match kept {
        Some(id) => id,
        None => {
            let list = service::list(frontend, false);
            if list.count == 0 {
                return if list.empty == Reason::NO_ENDPOINTS {
                    refused(Reason::SOCKET_NO_ENDPOINTS, Answer::Refused)
                } else {
                    refused(Reason::SOCKET_NO_LOCAL, Answer::Unreachable)
                };
            }
            let flow = (hash::words(config.seed, cookie, forward.tail ^ now as u64) >> 32) as u32;
            match service::choose(t, list, client, flow, config, now) {
                Some(id) => id,
                None => return Answer::Refused,
            }
        }
    };
    let Some(b) = t.backend(id) else { return Answer::Refused };
    // A pod that reaches itself must see the VIP as source: its packets see to that.
    if pod && b.addr == client {
        return Answer::Allow;
    }
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
    let Some(config) = t.config() else { return };
    if owner(d, t, config, d.addr().is_v4()) == Owner::Stranger {
        return;
    }
    let key = SocketKey { cookie: d.cookie(), addr: d.addr(), tail: tail(d.port(), d.proto()) };
    if let Some(vip) = t.socket(&key) {
        let (addr, port) = (vip.addr, Port(vip.tail as u16));
        d.set(addr, port);
    }
}
