//! A trace in words: names in place of ids, one line a step, what to do about what went wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use netlb_common::backend::{self, state as backend_state};
use netlb_common::conntrack::{CtKey, CtValue, age, flags as flow, state};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags, scheduler};
use netlb_common::{Reason, proto};
use netlb_ebpf::packet::Hop;
use netlb_ebpf::tables::Tier;
use serde::Serialize;

use super::event::Event;
use super::frame::TCP_FLAGS;
use super::journey::{End, Headers, Hook, Journey, Outcome, Stage, Start};
use super::network::{Lost, Network};
use super::{By, Choice, Trace};
use crate::plan::Names;
use crate::store::Tables;

/// What gives ids their meaning.
pub struct Words<'a> {
    pub names: &'a Names,
    pub tables: &'a Tables,
    pub network: &'a dyn Network,
    /// Jiffies.
    pub now: u32,
    /// Devices with netlb's programs on them, by interface index; `None`: not known.
    pub attached: Option<BTreeSet<u32>>,
}

/// A trace as it is printed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Told {
    pub packet: Packet,
    pub stages: Vec<Said>,
    pub result: Verdict,
    pub answer: Option<Answer>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Headers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Packet {
    pub protocol: &'static str,
    /// TCP's, by name.
    pub flags: Vec<&'static str>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    /// Bytes of the IP packet.
    pub size: usize,
}

/// One hook.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Said {
    pub hook: &'static str,
    /// The device, with the pod behind it; empty for a socket call.
    pub device: String,
    pub steps: Vec<Step>,
    pub text: String,
    /// As it goes on.
    pub packet: Packet,
}

/// One look-up or write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    pub what: &'static str,
    pub key: String,
    pub found: String,
}

/// What becomes of the packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    /// `pod`, `node`, `away`, `refused`, `dropped` or `stuck`.
    pub kind: &'static str,
    /// A name of `netlb drops`, of what is refused or dropped.
    pub reason: Option<&'static str>,
    pub text: String,
    /// What to do.
    pub advice: Option<&'static str>,
    pub service: Option<String>,
    /// The chosen backend.
    pub backend: Option<SocketAddr>,
    /// All it was chosen from.
    pub backends: BTreeSet<SocketAddr>,
    /// `random`, `rr`, `sh` or `lc`; `session`, `flow` if none was asked.
    pub chosen_by: Option<&'static str>,
    /// The backend sees this client.
    pub seen_as: Option<IpAddr>,
    /// It is not the client's own address.
    pub masqueraded: bool,
}

/// The way back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    pub packet: Packet,
    pub stages: Vec<Said>,
    pub text: String,
    /// The client gets it, from the address it asked.
    pub arrives: bool,
}

impl Words<'_> {
    pub fn tell(&self, trace: &Trace) -> Told {
        let asked = &trace.asked;
        let mut stages: Vec<Said> = trace.call.iter().map(|stage| self.call(stage, trace)).collect();
        let packet = match &trace.there {
            Some(journey) => {
                stages.extend(self.stages(journey));
                Packet { dst: asked.shape.dst, ..packet(&journey.before) }
            }
            None => Packet {
                protocol: proto::name(asked.shape.proto),
                flags: flag_names(asked.shape.flags, asked.shape.proto),
                src: asked.shape.src,
                dst: asked.shape.dst,
                ttl: 0,
                size: usize::from(asked.shape.size),
            },
        };
        let answer = trace.back.as_ref().map(|back| self.answer(back, trace));
        Told { packet, stages, result: self.verdict(trace), answer, notes: self.notes(trace) }
    }

    fn stages(&self, journey: &Journey) -> Vec<Said> {
        let mut before = &journey.before;
        let mut said = Vec::new();
        for stage in &journey.stages {
            said.push(Said {
                hook: stage.hook.name(),
                device: if stage.ifindex == 0 { String::new() } else { self.device(stage.ifindex) },
                steps: self.steps(&stage.events),
                text: self.outcome(stage, before),
                packet: packet(&stage.after),
            });
            before = &stage.after;
        }
        said
    }

    fn call(&self, stage: &Stage, trace: &Trace) -> Said {
        let (vip, to) = (trace.asked.shape.dst, stage.after.dst);
        let text = if let Outcome::Refused(reason) = stage.outcome {
            format!("fails with ECONNREFUSED ({}): {}", name(reason), sentence(reason))
        } else if let Outcome::Dropped(reason) = stage.outcome {
            format!("fails with EHOSTUNREACH ({}): {}", name(reason), sentence(reason))
        } else if to == vip {
            "goes on as it is".to_owned()
        } else {
            format!("connects to {} in place of {vip}", self.at(to))
        };
        let device = match trace.asked.start {
            Start::Pod(ifindex) => self.device(ifindex),
            Start::Outside(_) | Start::Node => String::new(),
        };
        Said { hook: stage.hook.name(), device, steps: self.steps(&stage.events), text, packet: packet(&stage.after) }
    }

    /// What became of the packet at a hook.
    fn outcome(&self, stage: &Stage, before: &Headers) -> String {
        let unchanged = (before.src, before.dst) == (stage.after.src, stage.after.dst);
        match stage.outcome {
            Outcome::Passed => {
                let done = if unchanged { "left as it is" } else { "translated" };
                match stage.hook {
                    Hook::ToPod => format!("{done}, and into {}", self.behind(stage.ifindex)),
                    Hook::ToOutside => format!("{done}, and out of {}", self.network.name(stage.ifindex)),
                    Hook::FromPod | Hook::FromOutside | Hook::Socket | Hook::Stack => {
                        format!("{done}, and passed to the host's stack")
                    }
                }
            }
            Outcome::Delivered { ifindex } => {
                format!(
                    "delivered to {} by {}, past the host's stack",
                    self.behind(ifindex),
                    self.network.name(ifindex)
                )
            }
            Outcome::Forwarded { ifindex, gateway } => {
                format!("forwarded {}, past the host's stack", self.out(ifindex, gateway))
            }
            Outcome::Hairpin => format!("sent back to {}, which is its own backend", self.behind(stage.ifindex)),
            Outcome::Refused(reason) => {
                let with = if stage.after.proto == proto::TCP { "TCP RST" } else { "an ICMP error" };
                format!("refused with {with} ({}): {}", name(reason), sentence(reason))
            }
            Outcome::Dropped(reason) => format!("dropped ({}): {}", name(reason), sentence(reason)),
            Outcome::Routed(way) if way.local => "routed to the node itself".to_owned(),
            Outcome::Routed(way) => format!("routed {}", self.out(way.ifindex, way.gateway)),
            Outcome::Bridged { ifindex } => format!("bridged to {}", self.device(ifindex)),
            Outcome::Lost(Lost::NoRoute) => {
                "no route: the host has no way to that address, or does not forward".to_owned()
            }
            Outcome::Lost(Lost::Martian) => {
                "not believed: the host expects no such source from that device (rp_filter)".to_owned()
            }
            Outcome::TooBig { mtu } => {
                format!("too big: the next device takes {mtu} bytes, and the host tells the sender")
            }
            Outcome::Expired => "TTL ends here, and the host tells the sender".to_owned(),
        }
    }

    fn out(&self, ifindex: u32, gateway: Option<IpAddr>) -> String {
        let via = gateway.map_or_else(String::new, |ip| format!(" to next hop {ip}"));
        format!("out of {}{via}", self.network.name(ifindex))
    }

    /// A device, and the pod behind it.
    fn device(&self, ifindex: u32) -> String {
        let name = self.network.name(ifindex);
        self.pod(ifindex).map_or_else(|| name.clone(), |pod| format!("{name} ({pod})"))
    }

    fn behind(&self, ifindex: u32) -> String {
        self.pod(ifindex).map_or_else(|| format!("what is behind {}", self.network.name(ifindex)), str::to_owned)
    }

    fn pod(&self, ifindex: u32) -> Option<&str> {
        let id = self.tables.endpoint_by_ifindex.get(&ifindex)?;
        let own = self.tables.endpoint_by_addr.iter().filter(|(_, owner)| *owner == id);
        own.filter_map(|(addr, _)| self.names.pod(addr.to_ip())).next()
    }

    /// An address, and who has it.
    fn at(&self, at: SocketAddr) -> String {
        match self.who(at.ip()) {
            Some(who) => format!("{at} ({who})"),
            None => at.to_string(),
        }
    }

    fn who(&self, ip: IpAddr) -> Option<&str> {
        let config = self.tables.config.as_ref()?;
        let own = [config.node4.to_ip(), config.node6.to_ip()].contains(&ip);
        if own { Some("this node") } else { self.names.pod(ip) }
    }

    fn backend(&self, id: u32) -> String {
        self.address(id).map_or_else(|| "a backend that is gone".to_owned(), |at| self.at(at))
    }

    fn address(&self, id: u32) -> Option<SocketAddr> {
        self.tables.backends.get(&id).map(|b| SocketAddr::new(b.addr.to_ip(), b.port.get()))
    }

    fn steps(&self, events: &[Event]) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        // The tuple of the answers is looked up before it is taken. A record that is read twice is one step.
        let opened: BTreeSet<CtKey> = events
            .iter()
            .filter_map(|event| {
                let Event::Opened { key, .. } = event else { return None };
                Some(*key)
            })
            .collect();
        let mut seen = BTreeSet::new();
        for (i, event) in events.iter().enumerate() {
            let Event::Flow { tier, key, found } = event else {
                steps.extend(self.step(event).filter(|step| !steps.contains(step)));
                continue;
            };
            if !seen.insert(*key) {
                continue;
            }
            let other = events.get(i + 1).and_then(|next| {
                let Event::Flow { key: same, found, .. } = next else { return None };
                found.filter(|_| same == key)
            });
            let entry = found.map(|entry| (*tier, entry)).or(other.map(|entry| (Tier::New, entry)));
            let first = steps.is_empty();
            // Not the packet's own: whether the tuple of its answers is free is worth a line only if it is not.
            if entry.is_some() || first || !opened.contains(key) {
                steps.push(self.flow(key, entry, first));
            }
        }
        steps
    }

    /// `own`: the packet's own tuple, rather than one that is looked at besides.
    fn flow(&self, key: &CtKey, entry: Option<(Tier, CtValue)>, own: bool) -> Step {
        let found = match entry {
            None => "no flow".to_owned(),
            Some((_, entry)) if age(self.now, entry.seen) > entry.timeout => {
                "a flow that is over: counts as none".to_owned()
            }
            Some((tier, entry)) => {
                let seconds =
                    f64::from(age(self.now, entry.seen)) / f64::from(self.tables.config.map_or(1, |c| c.hz.max(1)));
                let answered = if tier == Tier::Assured { "answered" } else { "not answered yet" };
                let what = if entry.flags & flow::REPLY != 0 { "answers of a flow" } else { "a flow" };
                let backend = match entry.backend {
                    0 => String::new(),
                    id => format!(" of {} to {}", self.names.service(entry.service), self.backend(id)),
                };
                let (to_src, to_dst) = (value_src(&entry), value_dst(&entry));
                let decides = if own { "; it decides" } else { "" };
                format!(
                    "{what}{backend}: {}, {answered}, last seen {seconds:.1} s ago{decides}: becomes {to_src} -> {to_dst}",
                    state::name(entry.state),
                )
            }
        };
        Step { what: "conntrack", key: tuple(key), found }
    }

    fn step(&self, event: &Event) -> Option<Step> {
        let (what, key, found) = match event {
            Event::Flow { .. } => return None,
            Event::Frontend { key, found } => ("frontend", frontend_key(key), self.frontend(key, *found)),
            Event::Slot { backend, .. } => ("slot", String::new(), format!("names {}", self.backend(*backend))),
            Event::Backend { id: 0, .. } | Event::Endpoint { id: 0, .. } => return None,
            Event::Backend { id, found } => {
                let place = if found.flags & backend::flags::ON_NODE != 0 { "on this node" } else { "on another node" };
                let word = backend_state::name(found.state);
                ("backend", self.backend(*id), format!("{word}, {place}"))
            }
            Event::Endpoint { found, .. } => {
                let bridge = match found.bridge {
                    0 => String::new(),
                    bridge => format!(", a port of {}", self.network.name(bridge)),
                };
                (
                    "endpoint",
                    self.behind(found.ifindex),
                    format!("{}, MTU {}{bridge}", self.network.name(found.ifindex), found.mtu),
                )
            }
            Event::EndpointByAddr { addr, found } => ("endpoint", addr.to_ip().to_string(), self.endpoint(*found)),
            Event::EndpointByIfindex { ifindex, found } => {
                ("endpoint", self.network.name(*ifindex), self.endpoint(*found))
            }
            Event::Uplink { ifindex: 0, .. } => return None,
            Event::Uplink { ifindex, found } => {
                let word = if found.is_some() { "an uplink" } else { "no uplink" };
                ("uplink", self.network.name(*ifindex), word.to_owned())
            }
            Event::Client { known, .. } => {
                ("client", "its network namespace".to_owned(), if *known { "a pod's" } else { "nobody's" }.to_owned())
            }
            Event::SourceRange { key, allowed } => {
                let word =
                    if *allowed { "inside loadBalancerSourceRanges" } else { "outside of loadBalancerSourceRanges" };
                ("source", key.addr.to_ip().to_string(), word.to_owned())
            }
            Event::Fragment { key, found } => {
                let word = if found.is_some() { "its first was seen" } else { "its first was not seen" };
                ("fragment", format!("{} -> {}", key.src, key.dst), word.to_owned())
            }
            Event::Turn { turn } => ("turn", String::new(), format!("number {turn} in the round")),
            Event::Load { backend, flows } => ("load", self.backend(*backend), format!("{flows} open flows")),
            Event::Session { key, found } => {
                let word = found
                    .map_or_else(|| "no session".to_owned(), |last| format!("was at {}", self.backend(last.backend)));
                ("session", key.client.to_ip().to_string(), word)
            }
            Event::SessionKept { key, value } => {
                ("session", key.client.to_ip().to_string(), format!("is now at {}", self.backend(value.backend)))
            }
            Event::Route { src, dst, hop } => {
                let word = match hop {
                    Hop::To(ifindex) => format!("out of {}", self.network.name(*ifindex)),
                    Hop::TooBig(mtu) => format!("too big: the way takes {mtu} bytes"),
                    Hop::Local => "to the node itself".to_owned(),
                    Hop::Unresolved => "its neighbour is not known yet".to_owned(),
                    Hop::Nowhere => "no route".to_owned(),
                };
                ("route", format!("{src} -> {dst}"), word)
            }
            Event::Opened { key, value } => {
                let what = if value.flags & flow::REPLY != 0 { "answers become" } else { "becomes" };
                ("new flow", tuple(key), format!("{what} {} -> {}", value_src(value), value_dst(value)))
            }
            Event::Chosen { .. } => return None,
            Event::Counted(reason) => ("counted", name(*reason).to_owned(), sentence(*reason).to_owned()),
        };
        Some(Step { what, key, found })
    }

    fn endpoint(&self, id: Option<u32>) -> String {
        match id.and_then(|id| self.tables.endpoints.get(&id)) {
            Some(endpoint) => format!("{}, a pod of this node", self.device(endpoint.ifindex)),
            None => "no pod of this node".to_owned(),
        }
    }

    fn frontend(&self, key: &FrontendKey, found: Option<FrontendValue>) -> String {
        let Some(value) = found else { return "none".to_owned() };
        let is = |flag: u32| value.flags & flag != 0;
        if key.is_address() {
            let words = [(flags::VIP, "a cluster IP"), (flags::NODE, "an address that serves NodePorts")];
            let words: Vec<&str> = words.into_iter().filter(|(flag, _)| is(*flag)).map(|(_, word)| word).collect();
            return words.join(", ");
        }
        let kind = match () {
            () if key.is_node_port() => "NodePort",
            () if is(flags::LOAD_BALANCER) => "load balancer IP",
            () if is(flags::EXTERNAL) => "external IP",
            () => "cluster IP",
        };
        let mut text = format!("{kind} of {}: {}", self.names.service(value.service), slots(value.count));
        if (value.outside_slots, value.outside_count) != (value.slots, value.count) {
            let _ = write!(text, ", from outside {}", slots(value.outside_count));
        }
        if value.affinity_s != 0 {
            let _ = write!(text, ", a client stays for {} s", value.affinity_s);
        }
        if is(flags::KEEP_CLIENT) {
            text.push_str(", clients keep their address");
        }
        text
    }

    fn verdict(&self, trace: &Trace) -> Verdict {
        let (kind, reason, text) = match (&trace.there, trace.call.as_ref().map(|call| call.outcome)) {
            (Some(journey), _) => self.end(journey, trace),
            (None, Some(Outcome::Refused(reason))) => {
                ("refused", Some(reason), format!("connect() fails with ECONNREFUSED: {}", sentence(reason)))
            }
            (None, Some(Outcome::Dropped(reason))) => {
                ("dropped", Some(reason), format!("connect() fails with EHOSTUNREACH: {}", sentence(reason)))
            }
            (None, _) => ("stuck", None, "nothing was sent".to_owned()),
        };
        let choice = trace.choice.as_ref();
        let arrived = trace.there.as_ref().filter(|_| matches!(kind, "pod" | "node" | "away"));
        let seen_as = arrived.map(|journey| journey.after.src.ip());
        let looped = |journey: &&Journey| journey.stages.iter().any(|stage| stage.outcome == Outcome::Hairpin);
        let hairpin = arrived.as_ref().is_some_and(looped);
        let own = trace.asked.shape.src.ip();
        Verdict {
            kind,
            reason: reason.map(name),
            text,
            advice: reason.and_then(advice),
            service: choice.map(|choice| self.names.service(choice.frontend.service)),
            backend: choice.and_then(|choice| self.address(choice.backend)),
            backends: choice.iter().flat_map(|choice| &choice.list).filter_map(|id| self.address(*id)).collect(),
            chosen_by: choice.map(|choice| match choice.by {
                By::Scheduler | By::Socket => scheduler::name(choice.frontend.flags >> flags::SCHEDULER_SHIFT & 0xf),
                By::Session => "session",
                By::Flow => "flow",
            }),
            seen_as,
            masqueraded: !hairpin && !own.is_unspecified() && seen_as.is_some_and(|ip| ip != own),
        }
    }

    fn end(&self, journey: &Journey, trace: &Trace) -> (&'static str, Option<Reason>, String) {
        let after = &journey.after;
        let last = journey.stages.last();
        match journey.end {
            End::Pod(ifindex) => ("pod", None, format!("reaches {} at {}", self.behind(ifindex), after.dst)),
            End::Node => ("node", None, format!("reaches the node itself at {}", after.dst)),
            End::Away { ifindex, gateway } => {
                ("away", None, format!("leaves {} for {}", self.out(ifindex, gateway), self.at(after.dst)))
            }
            End::Refused(reason) | End::Dropped(reason) => {
                let kind = if matches!(journey.end, End::Refused(_)) { "refused" } else { "dropped" };
                let text = last.map_or_else(String::new, |stage| self.outcome(stage, &journey.before));
                (kind, Some(reason), text)
            }
            End::Stuck => {
                let text = last.map_or_else(
                    || format!("{} cannot be sent", trace.asked.shape.dst),
                    |stage| format!("stays in the host's stack: {}", self.outcome(stage, &journey.before)),
                );
                ("stuck", None, text)
            }
        }
    }

    fn answer(&self, back: &Journey, trace: &Trace) -> Answer {
        let asked = &trace.asked.shape;
        let home = match trace.asked.start {
            Start::Pod(ifindex) => back.end == End::Pod(ifindex),
            Start::Outside(_) => matches!(back.end, End::Away { .. }),
            Start::Node => back.end == End::Node,
        };
        // A socket call was told another address, and shows the one it was told of.
        let told = trace.call.as_ref().map_or(asked.dst, |call| call.after.dst);
        let from = if back.after.src == told { asked.dst } else { back.after.src };
        let arrives = home && back.after.src == told && back.after.dst.ip() == trace_client(trace);
        let text = match (home, arrives) {
            (true, true) => format!("comes back as from {from}, which was asked"),
            (true, false) => {
                format!("comes back from {from}, not from {} which was asked: the client ignores it", asked.dst)
            }
            (false, _) => {
                let (_, _, text) = self.end(back, trace);
                format!("does not come back: {text}")
            }
        };
        Answer { packet: packet(&back.before), stages: self.stages(back), text, arrives }
    }

    fn notes(&self, trace: &Trace) -> Vec<String> {
        let mut notes = Vec::new();
        let journeys = [&trace.there, &trace.back];
        let stages = || journeys.into_iter().flatten().flat_map(|journey| &journey.stages);
        if let Some(attached) = &self.attached {
            let bare: BTreeMap<u32, &'static str> = stages()
                .filter(|stage| !matches!(stage.hook, Hook::Stack | Hook::Socket) && !attached.contains(&stage.ifindex))
                .map(|stage| (stage.ifindex, stage.hook.name()))
                .collect();
            notes.extend(bare.into_keys().map(|ifindex| {
                format!(
                    "netlb's programs are not on {}: what is said of it is what they would do; see `netlb status`",
                    self.device(ifindex)
                )
            }));
        }
        if stages().any(|stage| stage.hook == Hook::Stack) {
            notes.push(
                "the host's packet filter and its own conntrack are not asked: they may still drop or translate"
                    .to_owned(),
            );
        }
        notes
    }

    /// The trace as text.
    pub fn text(&self, told: &Told, trace: &Trace) -> String {
        let mut text = format!("{}\n", self.line(&told.packet));
        tell_stages(&mut text, &told.stages);
        let r = &told.result;
        let _ = writeln!(text, "\nResult: {}", r.text);
        if let Some(choice) = &trace.choice {
            self.tell_choice(&mut text, choice);
        }
        if let (Some(ip), true) = (r.seen_as, r.masqueraded) {
            let _ = writeln!(text, "  masqueraded: the backend sees {ip} as the client");
        } else if let Some(ip) = r.seen_as.filter(|_| trace.choice.is_some()) {
            let _ = writeln!(text, "  not masqueraded: the backend sees {ip} as the client");
        }
        if let Some(advice) = r.advice {
            let _ = writeln!(text, "  what to do: {advice}");
        }
        if let Some(answer) = &told.answer {
            let _ = writeln!(text, "\nAnswer: {}", self.line(&answer.packet));
            tell_stages(&mut text, &answer.stages);
            let _ = writeln!(text, "\nThe answer {}", answer.text);
        }
        for note in &told.notes {
            let _ = writeln!(text, "Note: {note}");
        }
        text
    }

    fn line(&self, p: &Packet) -> String {
        let flags = if p.flags.is_empty() { String::new() } else { format!(" {}", p.flags.join(" ")) };
        let dst = match self.tables.frontends.get(&frontend_of(p)) {
            Some(frontend) => format!("{} ({})", p.dst, self.names.service(frontend.service)),
            None => self.at(p.dst),
        };
        format!("{}{flags}, {} bytes: {} -> {dst}", p.protocol, p.size, self.at(p.src))
    }

    fn tell_choice(&self, text: &mut String, choice: &Choice) {
        let backend = self.backend(choice.backend);
        let service = self.names.service(choice.frontend.service);
        let scheduler = choice.frontend.flags >> flags::SCHEDULER_SHIFT & 0xf;
        let distinct: BTreeMap<u32, usize> = choice.list.iter().fold(BTreeMap::new(), |mut counts, id| {
            *counts.entry(*id).or_default() += 1;
            counts
        });
        let how = match (choice.by, scheduler) {
            (By::Flow, _) => {
                let _ = writeln!(text, "  backend {backend} of {service}: the flow that was there before has it");
                return;
            }
            (By::Session, _) => "the client's session has it",
            (By::Socket, scheduler::RANDOM) => "at random for each socket, here for an imagined one",
            (_, scheduler::RANDOM) => "by this flow's hash: another source port may get another",
            (_, scheduler::ROUND_ROBIN) => "in its turn (rr): the next flow gets the next",
            (_, scheduler::SOURCE_HASH) => "by the client's address (sh): it gets the same again",
            _ => "for its few open flows (lc)",
        };
        if distinct.len() < 2 {
            let _ = writeln!(text, "  backend {backend} of {service}, the only one");
            return;
        }
        let _ = writeln!(text, "  backend {backend} of {service}, one of {}, {how}", distinct.len());
        let mut lines: Vec<String> = distinct
            .iter()
            .map(|(id, weight)| {
                let weight = if *weight == 1 { String::new() } else { format!(", {weight} slots") };
                format!("    {}{weight}", self.backend(*id))
            })
            .collect();
        lines.sort();
        text.extend(lines.into_iter().map(|line| line + "\n"));
    }
}

/// The client's address as the way back knows it.
fn trace_client(trace: &Trace) -> IpAddr {
    trace.there.as_ref().map_or(trace.asked.shape.src.ip(), |journey| journey.before.src.ip())
}

fn tell_stages(text: &mut String, stages: &[Said]) {
    for stage in stages {
        let on = if stage.device.is_empty() { String::new() } else { format!(" on {}", stage.device) };
        let _ = writeln!(text, "\n{}{on}", stage.hook);
        let width = stage.steps.iter().map(|step| step.key.len()).filter(|len| *len <= 48).max().unwrap_or(0);
        for step in &stage.steps {
            let _ = writeln!(text, "  {:<10} {:<width$}  {}", step.what, step.key, step.found);
        }
        let _ = writeln!(text, "  => {}", stage.text);
        if stage.hook != Hook::Socket.name() {
            let _ = writeln!(text, "     {} -> {}, TTL {}", stage.packet.src, stage.packet.dst, stage.packet.ttl);
        }
    }
}

fn packet(headers: &Headers) -> Packet {
    Packet {
        protocol: proto::name(headers.proto),
        flags: flag_names(headers.flags, headers.proto),
        src: headers.src,
        dst: headers.dst,
        ttl: headers.ttl,
        size: headers.len,
    }
}

/// SCTP's chunks go by the flags they stand for.
fn flag_names(bits: u8, proto: u8) -> Vec<&'static str> {
    let named = proto == proto::TCP || proto == proto::SCTP;
    TCP_FLAGS.iter().filter(|(_, bit)| named && bits & bit != 0).map(|(name, _)| *name).collect()
}

/// The frontend that a packet is addressed to, if it is one.
fn frontend_of(packet: &Packet) -> FrontendKey {
    let proto = [proto::TCP, proto::UDP, proto::SCTP].into_iter().find(|proto| proto::name(*proto) == packet.protocol);
    FrontendKey::new(packet.dst.ip().into(), netlb_common::Port::new(packet.dst.port()), proto.unwrap_or(0))
}

fn frontend_key(key: &FrontendKey) -> String {
    if key.is_address() {
        format!("{}, any port", key.addr)
    } else if key.is_node_port() {
        format!("NodePort {}/{}", key.port().get(), proto::name(key.proto()))
    } else {
        format!("{}/{}", SocketAddr::new(key.addr.to_ip(), key.port().get()), proto::name(key.proto()))
    }
}

fn slots(count: u32) -> String {
    match count {
        0 => "no backend".to_owned(),
        1 => "1 slot".to_owned(),
        count => format!("{count} slots"),
    }
}

fn tuple(key: &CtKey) -> String {
    let src = SocketAddr::new(key.src.to_ip(), key.sport().get());
    format!("{src} -> {}", SocketAddr::new(key.dst.to_ip(), key.dport().get()))
}

fn value_src(value: &CtValue) -> SocketAddr {
    SocketAddr::new(value.src.to_ip(), (value.ports as u16).swap_bytes())
}

fn value_dst(value: &CtValue) -> SocketAddr {
    SocketAddr::new(value.dst.to_ip(), ((value.ports >> 16) as u16).swap_bytes())
}

fn name(reason: Reason) -> &'static str {
    reason.name().unwrap_or("?")
}

fn sentence(reason: Reason) -> &'static str {
    Reason::ALL.iter().find(|(known, ..)| *known == reason).map_or("", |(.., text)| *text)
}

/// What to do about a refusal or a drop; nothing about what is as it should be.
fn advice(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NO_ENDPOINTS | Reason::SOCKET_NO_ENDPOINTS => {
            "look at the Service's EndpointSlices: are its pods ready, does its selector match them?"
        }
        Reason::UNDEFINED_PORT | Reason::SOCKET_UNDEFINED_PORT => {
            "`netlb service list` shows the ports that the Service has; look at spec.ports, and at the protocol"
        }
        Reason::UNALLOCATED | Reason::SOCKET_UNALLOCATED => {
            "no Service has this address: the client may know a former one; ask the DNS again"
        }
        Reason::SOURCE_RANGE | Reason::SOCKET_SOURCE_RANGE => {
            "add the client's range to spec.loadBalancerSourceRanges, if it is to be let in"
        }
        Reason::NO_LOCAL_INTERNAL => "run a pod of the Service on this node, or set internalTrafficPolicy: Cluster",
        Reason::NO_LOCAL_EXTERNAL => {
            "ask a node that runs a pod of the Service (its healthCheckNodePort says so), or set externalTrafficPolicy: Cluster"
        }
        Reason::SOCKET_NO_LOCAL => "run a pod of the Service on this node, or set the traffic policy to Cluster",
        Reason::NO_FLOW | Reason::STRAY_RST => {
            "the connection is not known (any more): a client that opens a new one, with a SYN, is served"
        }
        Reason::NO_ROUTE => "look at `ip route get` for the backend on this node: the pod network's routes are missing",
        Reason::NO_ADDRESS => "give the node an address of this family: see the addresses in `netlb status`",
        Reason::CONNTRACK_FULL | Reason::PORTS_EXHAUSTED => {
            "too many flows at once: see `netlb ct list`, and --max-conntrack of the agent"
        }
        Reason::TOO_BIG | Reason::FRAGMENTATION_NEEDED => "send smaller packets: --size here, path MTU discovery there",
        Reason::STALE_BACKEND => "nothing: the pod is gone, and a new connection gets another",
        _ => return None,
    })
}
