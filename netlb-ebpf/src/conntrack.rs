//! Flows: find one, advance its state, open one. Records and the state table are in `netlb_common::conntrack`.

use netlb_common::backend::{self, BackendValue};
use netlb_common::config::Config;
use netlb_common::conntrack::{
    CtKey, CtValue, REOPEN, event, flags, is_assured, is_over, state, step, timeout_of, timeout_s,
};
use netlb_common::{Addr, Reason, checksum, hash, proto};

use crate::detour::Detour;
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::tables::{Claim, Ct, NewFlow, Tables, Tier};

/// Source ports tried when the tuple of the answers is taken: where three ports of four are, one flow in ten thousand finds none. Thousands of short
/// connections a minute to one backend do take a good part, each for as long as its entries stand.
const PORT_PROBES: u32 = 32;

/// Multiplier of the linear congruential generator that leads from one port to the next (L'Ecuyer, "Tables of linear congruential generators of
/// different sizes and good lattice structure", 1999).
const STEP: u32 = 2_891_336_453;

/// Source ports are moved into this range, above what applications listen on by habit.
const PORT_FIRST: u32 = 32_768;
const PORT_COUNT: u32 = 28_232;

/// What the tables know of a packet's flow.
pub enum Found {
    /// A live flow: rewrite and forward.
    Flow(Ct),
    /// No flow, or one that is over: choose a backend.
    Miss,
    /// A packet that is counted and translated at another hook, behind the stack.
    Elsewhere,
    /// A flow that must not go on.
    Dead(Reason),
}

/// Looks a packet's tuple up, in both tiers; expired entries count as absent.
#[inline(always)]
pub fn lookup<T: Tables>(t: &T, key: &CtKey, now: u32) -> Option<(Ct, Tier)> {
    let (ct, tier) = match t.ct(Tier::Assured, key) {
        Some(ct) => (ct, Tier::Assured),
        None => (t.ct(Tier::New, key)?, Tier::New),
    };
    // A flow that speaks in one direction only keeps both entries alive.
    if ct.expired(now) && partner(t, ct, key).is_none_or(|other| other.expired(now)) {
        return None;
    }
    Some((ct, tier))
}

/// Finds the flow of a packet that comes in, from a pod or an uplink, and advances its state.
#[inline(always)]
pub fn find_entering<T: Tables>(t: &T, key: &CtKey, parsed: Parsed, now: u32) -> Found {
    match lookup(t, key, now) {
        Some((ct, tier)) if enters(&ct) => progress(t, key, parsed, now, ct, tier),
        Some(_) => Found::Elsewhere,
        None => Found::Miss,
    }
}

/// Finds the flow of a packet that the stack sends out, to a pod or an uplink, and advances its state. A packet of the client's own direction counts
/// as a miss and leaves no trace.
#[inline(always)]
pub fn find_leaving<P: Packet, T: Tables>(p: &P, t: &T, key: &CtKey, parsed: Parsed, now: u32) -> Found {
    match lookup(t, key, now) {
        Some((ct, tier)) if leaves(p, &ct) => progress(t, key, parsed, now, ct, tier),
        _ => Found::Miss,
    }
}

/// The entry is applied where packets come in. Answers on the stack road wait for the hook where they leave it; masquerade is the other way round.
#[inline(always)]
pub fn enters(ct: &Ct) -> bool {
    match ct.is(flags::REPLY) {
        true => ct.is(flags::REDIRECT | flags::HAIRPIN | flags::ROUTED | flags::SNAT),
        false => !ct.is(flags::SNAT),
    }
}

/// The entry is applied where packets leave the stack. That includes answers of the redirect road which had to take the stack.
#[inline(always)]
pub fn leaves<P: Packet>(p: &P, ct: &Ct) -> bool {
    match ct.is(flags::REPLY) {
        true => !ct.is(flags::ROUTED | flags::SNAT),
        // The flow of a socket of the node's. What was forwarded from the same port belongs to the flow that had it first, and is translated already.
        false if ct.is(flags::SNAT) && ct.is(flags::PORT_MOVED) => p.sent_here(),
        // A packet still on its way to a VIP here slipped past the hook where it should have been translated.
        false => ct.is(flags::ROUTED | flags::SNAT),
    }
}

#[inline(always)]
fn progress<T: Tables>(t: &T, key: &CtKey, parsed: Parsed, now: u32, ct: Ct, tier: Tier) -> Found {
    let event = if parsed.connects() { event::of_tcp(parsed.tcp_flags()) } else { event::DATA };
    let reply = ct.is(flags::REPLY);
    let current = ct.state();
    let next = step(current, event, reply);
    if next == REOPEN {
        t.count(Reason::REOPENED);
        forget(t, ct, key);
        return Found::Miss;
    }
    if !reply && ct.backend() != 0 {
        let opens = !parsed.connects() || event == event::SYN;
        let stale = t.backend(ct.backend()).is_none_or(|b| b.generation != ct.backend_generation());
        if stale && !opens {
            return Found::Dead(Reason::STALE_BACKEND);
        }
        // TCP keeps a backend that left its Service until it ends; UDP, which has no end, leaves with the change.
        if opens && (stale || t.backend(ct.backend()).is_none_or(|b| !serves(b))) {
            t.count(Reason::RESELECTED);
            t.add_load(ct.backend(), -1);
            forget(t, ct, key);
            return Found::Miss;
        }
    }
    if next != current {
        if tier == Tier::New && is_assured(next) {
            advance(t, ct, key, next, now);
            promote(t, ct, key);
            // The entry of the other tier may already serve another flow: read the new one.
            return match t.ct(Tier::Assured, key) {
                Some(moved) => Found::Flow(moved),
                None => Found::Flow(ct),
            };
        }
        advance(t, ct, key, next, now);
    }
    Found::Flow(ct)
}

/// Takes the flows it has, and no others, or new ones too.
#[inline(always)]
fn serves(b: &BackendValue) -> bool {
    matches!(b.state, backend::state::ACTIVE | backend::state::DRAINING)
}

/// The key under which the flow's other direction is found.
#[inline(always)]
pub fn partner_key(ct: &Ct, proto: u8) -> CtKey {
    CtKey::from_words(ct.dst(), ct.src(), ct.ports().rotate_left(16), proto)
}

/// The entry of the flow's other direction. `key` is the entry's own. A tuple outlives its flow: an entry whose own other direction is not `key`
/// belongs to a flow that came later, and is none of this one's business.
#[inline(never)]
fn partner<T: Tables>(t: &T, ct: Ct, key: &CtKey) -> Option<Ct> {
    let scratch = t.scratch()?;
    // SAFETY: this CPU's own record; only this function uses the field, and no reference to it leaves.
    let other_key = unsafe { &mut (*scratch.as_ptr()).partner };
    other_key.set(ct.dst(), ct.src(), ct.ports().rotate_left(16), key.proto());
    let other = t.ct(Tier::Assured, other_key).or_else(|| t.ct(Tier::New, other_key))?;
    if partner_key(&other, key.proto()) == *key { Some(other) } else { None }
}

/// Moves both entries to a state.
#[inline(never)]
fn advance<T: Tables>(t: &T, ct: Ct, key: &CtKey, next: u8, now: u32) {
    let hz = t.config().map_or(1, |c| c.hz);
    let timeout = timeout_of(next, ct.flags()).wrapping_mul(hz);
    if ct.backend() != 0 && is_over(next) != is_over(ct.state()) {
        t.add_load(ct.backend(), if is_over(next) { -1 } else { 1 });
    }
    ct.set_state(next, timeout, now);
    if let Some(other) = partner(t, ct, key) {
        other.set_state(next, timeout, now);
    }
}

/// Moves both entries from `CT_NEW` to `CT`. Without room there they stay, and are counted.
#[inline(never)]
fn promote<T: Tables>(t: &T, ct: Ct, key: &CtKey) {
    let other_key = partner_key(&ct, key.proto());
    let Some(other) = t.ct(Tier::New, &other_key).filter(|other| partner_key(other, key.proto()) == *key) else {
        return;
    };
    if !t.ct_insert(Tier::Assured, &other_key, other.value()) {
        t.count(Reason::ESTABLISHED_FULL);
        return;
    }
    if !t.ct_insert(Tier::Assured, key, ct.value()) {
        t.ct_delete(Tier::Assured, &other_key);
        t.count(Reason::ESTABLISHED_FULL);
        return;
    }
    t.ct_delete(Tier::New, &other_key);
    t.ct_delete(Tier::New, key);
}

/// Deletes both directions of a flow, wherever they are.
#[inline(never)]
fn forget<T: Tables>(t: &T, ct: Ct, key: &CtKey) {
    if partner(t, ct, key).is_some() {
        let other = partner_key(&ct, key.proto());
        t.ct_delete(Tier::Assured, &other);
        t.ct_delete(Tier::New, &other);
    }
    t.ct_delete(Tier::Assured, key);
    t.ct_delete(Tier::New, key);
}

/// A pod sends past all Services, to where a flow of its own to a Service awaits answers on the same port: that flow is over, or what answers this
/// packet would be taken for its answers and get the VIP as its source. It happens when a socket is translated in `connect()` and the one before it
/// was not, because its Service had no endpoint yet. A connection that lives keeps its answers: two of a pod's may share a port.
#[inline(never)]
pub fn overtake<T: Tables>(t: &T, key: &CtKey, ifindex: u32) {
    let Some(scratch) = t.scratch() else { return };
    // SAFETY: this CPU's own record; nobody else uses the field while a packet comes in, and no reference to it leaves.
    let reversed = unsafe { &mut (*scratch.as_ptr()).reversed };
    reversed.set(key.dst, key.src, key.ports().rotate_left(16), key.proto());
    let Some((ct, _)) = lookup(t, reversed, t.now()) else { return };
    let others = flags::SNAT | flags::ROUTED | flags::MASQUERADE | flags::HAIRPIN | flags::PORT_MOVED;
    if !ct.is(flags::REPLY) || ct.is(others) || key.proto() != proto::UDP && !is_over(ct.state()) {
        return;
    }
    // A packet's source proves nothing, as in `enter::way`.
    if t.endpoint_by_ifindex(ifindex).is_none_or(|id| t.endpoint_by_addr(&key.src) != Some(id)) {
        return;
    }
    if !is_over(ct.state()) {
        t.add_load(ct.backend(), -1);
    }
    t.count(Reason::REOPENED);
    forget(t, ct, reversed);
}

/// How a new flow will be handled.
#[derive(Clone, Copy)]
pub struct Way {
    /// See [`flags`]; those of both directions.
    pub flags: u16,
    /// Endpoints that its packets, and its answers, go to; 0: not a known pod of this node.
    pub hop: u32,
    pub client: u32,
    /// What the client's address is replaced by, with a port of the node's; unspecified: nothing.
    pub source: Addr,
}

/// Opens a flow from `key` to a backend: two entries in `CT_NEW`. The records stay in the scratch for this
/// packet: see [`opened`](crate::tables::opened).
#[inline(always)]
pub fn open<P: Detour, T: Tables>(
    p: &mut P,
    t: &T,
    key: &CtKey,
    backend_id: u32,
    way: Way,
    now: u32,
) -> Result<(), Reason> {
    let Some(config) = t.config() else { return Err(Reason::NO_SCRATCH) };
    let Some(b) = t.backend(backend_id) else { return Err(Reason::NO_SCRATCH) };
    let Some(scratch) = t.scratch() else { return Err(Reason::NO_SCRATCH) };
    // SAFETY: this CPU's own record; only this function and what it calls use the field, and handles into it are made afterwards.
    let records = unsafe { &mut (*scratch.as_ptr()).flow };
    let (fwd, reply) = (&mut records.forward, &mut records.reply);
    // A pod drops packets from its own address: its Service's address stands in for it.
    fwd.src = if way.flags & flags::HAIRPIN != 0 {
        key.dst
    } else if way.source != Addr::UNSPECIFIED {
        way.source
    } else {
        key.src
    };
    fwd.dst = b.addr;
    fwd.ports = key.ports() & 0xffff | (b.port.0 as u32) << 16;
    fwd.hop = way.hop;
    reply.hop = way.client;
    fwd.hop_generation = t.endpoint(way.hop).map_or(0, |e| e.generation);
    reply.hop_generation = t.endpoint(way.client).map_or(0, |e| e.generation);
    macro_rules! both {
        ($($field:ident = $value:expr;)*) => { $( fwd.$field = $value; reply.$field = $value; )* };
    }
    both! {
        flags = way.flags;
        backend = backend_id;
        backend_generation = b.generation;
        service = b.service;
    }
    let node_port = way.source != Addr::UNSPECIFIED;
    establish(p, t, key, config, node_port, now)?;
    if way.flags & flags::HAIRPIN != 0 {
        t.count(Reason::HAIRPIN);
    }
    t.count(Reason::NEW_FLOW);
    t.count_flow(backend_id);
    t.add_load(backend_id, 1);
    Ok(())
}

/// Opens the masquerade of a flow whose packet `key` leaves here: its source becomes `source`, with a port of the node's. If that is its source
/// already, only the port becomes another.
#[inline(never)]
pub fn masquerade<P: Detour, T: Tables>(p: &mut P, t: &T, key: &CtKey, source: &Addr) -> Result<(), Reason> {
    let Some(config) = t.config() else { return Err(Reason::NO_SCRATCH) };
    let Some(scratch) = t.scratch() else { return Err(Reason::NO_SCRATCH) };
    // SAFETY: as in `open`.
    let records = unsafe { &mut (*scratch.as_ptr()).flow };
    let (fwd, reply) = (&mut records.forward, &mut records.reply);
    let moved = if key.src == *source { flags::PORT_MOVED } else { 0 };
    fwd.src = *source;
    fwd.dst = key.dst;
    fwd.ports = key.ports();
    macro_rules! both {
        ($($field:ident = $value:expr;)*) => { $( fwd.$field = $value; reply.$field = $value; )* };
    }
    both! {
        flags = flags::SNAT | moved;
        hop = 0;
        hop_generation = 0;
        backend = 0;
        backend_generation = 0;
        service = 0;
    }
    establish(p, t, key, config, true, t.now())
}

/// Completes the two entries in the scratch and puts them into `CT_NEW`. `node_port`: the flow takes a source port of the node's.
#[inline(always)]
fn establish<P: Detour, T: Tables>(
    p: &mut P,
    t: &T,
    key: &CtKey,
    config: &Config,
    node_port: bool,
    now: u32,
) -> Result<(), Reason> {
    let Some(scratch) = t.scratch() else { return Err(Reason::NO_SCRATCH) };
    // SAFETY: as in `open`, whose references are used no more.
    let records = unsafe { &mut (*scratch.as_ptr()).flow };
    let (fwd, reply) = (&mut records.forward, &mut records.reply);
    let stream = key.proto() == proto::TCP || key.proto() == proto::SCTP;
    let first = if stream { state::SYN_SENT } else { state::UDP_NEW };
    let timeout = timeout_s(first).wrapping_mul(config.hz);
    reply.src = key.dst;
    reply.dst = key.src;
    reply.ports = key.ports().rotate_left(16);
    reply.flags |= flags::REPLY;
    macro_rules! both {
        ($($field:ident = $value:expr;)*) => { $( fwd.$field = $value; reply.$field = $value; )* };
    }
    both! {
        state = first;
        pad = 0;
        seen = now;
        timeout = timeout;
        policy_src = 0;
        policy_dst = 0;
    }
    // This packet is the client's first.
    (fwd.packets, fwd.bytes) = (1, p.len() as u64);
    (reply.packets, reply.bytes) = (0, 0);
    let addresses = checksum::delta(key.src.sum() + key.dst.sum(), fwd.src.sum() + fwd.dst.sum());
    fwd.delta_addr = addresses;
    reply.delta_addr = !addresses;
    let claimed = if node_port {
        let claimed = move_port(p, t, key, records, Ports::new(config.snat_first, config.snat_count).of_node());
        if claimed == Claim::Done {
            let moved = records.forward.flags & flags::PORT_MOVED != 0;
            t.count(if moved { Reason::PORT_MOVED } else { Reason::MASQUERADED });
        }
        claimed
    } else {
        let ports = checksum::delta(checksum::sum32(key.ports()), checksum::sum32(fwd.ports));
        fwd.delta_port = ports;
        reply.delta_port = !ports;
        records.back = answers(fwd, key.proto());
        match claim(t, &records.back, &records.reply) {
            Claim::Taken => {
                records.forward.flags |= flags::PORT_MOVED;
                records.reply.flags |= flags::PORT_MOVED;
                let claimed = move_port(p, t, key, records, Ports::new(PORT_FIRST, PORT_COUNT));
                if claimed == Claim::Done {
                    t.count(Reason::PORT_MOVED);
                }
                claimed
            }
            claimed @ (Claim::Done | Claim::Full) => claimed,
        }
    };
    match claimed {
        Claim::Done => {}
        Claim::Taken => return Err(Reason::PORTS_EXHAUSTED),
        Claim::Full => return Err(Reason::CONNTRACK_FULL),
    }
    // An old entry of this tuple in the first tier would hide the new one.
    t.ct_delete(Tier::Assured, key);
    if !t.ct_insert(Tier::New, key, &records.forward) {
        return Err(Reason::CONNTRACK_FULL);
    }
    Ok(())
}

/// The tuple of a flow's answers, as they arrive.
#[inline(always)]
fn answers(fwd: &CtValue, proto: u8) -> CtKey {
    CtKey::from_words(fwd.dst, fwd.src, fwd.ports.rotate_left(16), proto)
}

/// Finds a source port in a range whose answers nobody else awaits: no flow, and if it is the node's no socket of it.
#[inline(never)]
fn move_port<P: Detour, T: Tables>(p: &mut P, t: &T, key: &CtKey, records: &mut NewFlow, range: Ports) -> Claim {
    let (fwd, reply, back) = (&mut records.forward, &mut records.reply, &mut records.back);
    // By the time that the entries bear: whoever knows them knows where the search began.
    records.chance = hash::flow(fwd.seen, key);
    for _ in 0..PORT_PROBES {
        // A generator rather than steps of one length, which would let runs of taken ports grow together, as linear probing does. Volatile: it would
        // be kept on the stack.
        let chance = &raw mut records.chance;
        // SAFETY: our own record.
        let chance = unsafe {
            let now = chance.read_volatile();
            chance.write_volatile(now.wrapping_mul(STEP).wrapping_add(1));
            now
        };
        let port = range.first() + hash::scale(chance, range.count());
        fwd.ports = fwd.ports & 0xffff_0000 | (port as u16).to_be() as u32;
        let ports = checksum::delta(checksum::sum32(key.ports()), checksum::sum32(fwd.ports));
        fwd.delta_port = ports;
        reply.delta_port = !ports;
        *back = answers(fwd, key.proto());
        if range.is_of_node() && set_answers(t, back) && p.has_awaiting_socket(t) {
            continue;
        }
        match claim(t, back, reply) {
            Claim::Taken => {}
            claimed @ (Claim::Full | Claim::Done) => return claimed,
        }
    }
    Claim::Taken
}

/// Hands the tuple of answers to [`has_socket`].
#[inline(always)]
fn set_answers<T: Tables>(t: &T, back: &CtKey) -> bool {
    let Some(scratch) = t.scratch() else { return false };
    // SAFETY: this CPU's own record; only this function writes the field, and no reference to it leaves.
    unsafe { (*scratch.as_ptr()).answers.set(back.src, back.dst, back.ports(), back.proto()) };
    true
}

/// Whether a socket of the node awaits the answers in [`Scratch::answers`](crate::tables::Scratch). Conntrack knows nothing of such: they leave the node
/// as they are, and their answers pass by.
#[inline(always)]
pub fn has_socket<P: Packet, T: Tables>(p: &mut P, t: &T) -> bool {
    let Some(scratch) = t.scratch() else { return false };
    // SAFETY: this CPU's own record, written by `set_answers` before.
    p.has_socket(unsafe { &(*scratch.as_ptr()).answers })
}

/// A range of ports (host order), in one word: it crosses a function boundary in a register.
#[derive(Clone, Copy)]
struct Ports(u64);

impl Ports {
    /// Above any count.
    const OF_NODE: u64 = 1 << 63;

    #[inline(always)]
    const fn new(first: u32, count: u32) -> Self {
        Ports(first as u64 | (count as u64) << 32)
    }

    /// They are the node's own, and its sockets may use them as well.
    #[inline(always)]
    const fn of_node(self) -> Self {
        Ports(self.0 | Self::OF_NODE)
    }

    #[inline(always)]
    const fn is_of_node(self) -> bool {
        self.0 & Self::OF_NODE != 0
    }

    #[inline(always)]
    const fn first(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn count(self) -> u32 {
        ((self.0 & !Self::OF_NODE) >> 32) as u32
    }
}

/// Takes the tuple of the answers. `Taken`: a live flow has it (two VIPs with one backend and one client tuple, say).
#[inline(never)]
fn claim<T: Tables>(t: &T, back: &CtKey, reply: &CtValue) -> Claim {
    let now = t.now();
    if let Some(other) = t.ct(Tier::Assured, back) {
        if !free(t, other, back, reply, now) {
            return Claim::Taken;
        }
        t.ct_delete(Tier::Assured, back);
    }
    match t.ct_claim(back, reply) {
        Claim::Taken if t.ct(Tier::New, back).is_none_or(|other| free(t, other, back, reply, now)) => {
            if t.ct_insert(Tier::New, back, reply) { Claim::Done } else { Claim::Full }
        }
        claimed @ (Claim::Done | Claim::Taken | Claim::Full) => claimed,
    }
}

/// An entry that may be overwritten: of this very flow, or of one that is over.
#[inline(always)]
fn free<T: Tables>(t: &T, other: Ct, back: &CtKey, reply: &CtValue, now: u32) -> bool {
    (other.src() == reply.src && other.dst() == reply.dst && other.ports() == reply.ports)
        || (other.expired(now) && partner(t, other, back).is_none_or(|p| p.expired(now)))
}
