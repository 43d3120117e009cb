//! A case: a small scenario of packets, waits and changes, with what must become of each packet. One table of cases serves every runner: the core
//! on the host, and the loaded programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use netlb_common::conntrack::{CtKey, CtValue, flags, state};
use netlb_common::{Addr, Reason};
use netlb_ebpf::verdict::Decision;

use crate::need::Need;
use crate::packet::{Frame, MOVED, dissect, show, verify};
use crate::world::{Pod, SNAT_PORTS, World};

/// Where a packet meets netlb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// It leaves the pod behind this device.
    FromPod(u32),
    /// The stack delivers it to a pod.
    ToPod,
    /// It comes in by the uplink.
    FromOutside,
    /// The stack sends it out by the uplink.
    ToOutside,
}

/// What must become of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Pass,
    Drop,
    /// Back to the pod it came from.
    Reflect,
    /// To the pod behind this device.
    Deliver(u32),
    /// Out of the device the FIB names; its MACs are the kernel's business.
    Route,
}

impl From<Decision> for Outcome {
    /// What a route decided; those decisions that no hook may see count as drops, as in the hooks.
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Pass => Outcome::Pass,
            Decision::Reflect => Outcome::Reflect,
            Decision::Deliver(ifindex) => Outcome::Deliver(ifindex),
            Decision::Route(_) => Outcome::Route,
            Decision::Drop(_) | Decision::Refuse(..) | Decision::Open | Decision::Skip => Outcome::Drop,
        }
    }
}

/// What a runner can tell of a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    Pass,
    Drop,
    Reflect,
    /// The device, where the runner can see it.
    Deliver(Option<u32>),
    Route,
    /// TC has one code for the last three, XDP one for the last two.
    Redirect,
}

impl Seen {
    /// Whether a runner that sees this may have had that outcome.
    pub fn is(self, outcome: Outcome) -> bool {
        match (self, outcome) {
            (Seen::Pass, Outcome::Pass)
            | (Seen::Drop, Outcome::Drop)
            | (Seen::Reflect, Outcome::Reflect)
            | (Seen::Route, Outcome::Route) => true,
            (Seen::Deliver(seen), Outcome::Deliver(wanted)) => seen.is_none_or(|seen| seen == wanted),
            (Seen::Redirect, Outcome::Reflect | Outcome::Deliver(_) | Outcome::Route) => true,
            _ => false,
        }
    }
}

/// A packet after its hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Got {
    pub verdict: Seen,
    pub frame: Vec<u8>,
}

/// Bytes of the two MACs of a frame.
const MACS: usize = 12;

/// A runner could not process a packet, and why.
#[derive(Debug)]
pub struct Refused(pub String);

/// A conntrack entry as a runner dumps it.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// In `CT` rather than `CT_NEW`.
    pub assured: bool,
    pub key: CtKey,
    pub value: CtValue,
    /// Jiffies since `seen`.
    pub age: u32,
}

/// Something that runs packets: the host core, or programs in the kernel.
pub trait Runner {
    /// Whether it can process a frame at all.
    fn takes(&self, _hook: Hook, _frame: &[u8], _gso: u32) -> bool {
        true
    }
    fn send(&mut self, hook: Hook, frame: &[u8], gso: u32) -> Result<Got, Refused>;
    /// Lets time pass.
    fn wait(&mut self, seconds: u32) -> anyhow::Result<()>;
    fn change(&mut self, change: &dyn Fn(&mut World)) -> anyhow::Result<()>;
    /// By reason number; zero may be left out.
    fn counters(&self) -> anyhow::Result<BTreeMap<u8, u64>>;
    fn flows(&self) -> anyhow::Result<Vec<Flow>>;
}

/// One packet and its expectations. Made by [`from_pod`] and [`to_pod`]; without more it passes untouched, counts nothing and leaves conntrack's
/// number of entries alone.
#[derive(Clone, Debug)]
pub struct Send {
    hook: Hook,
    frame: Frame,
    gso: u32,
    outcome: Outcome,
    out: Option<Frame>,
    reasons: Vec<Reason>,
    new: i64,
    assured: i64,
}

/// A packet that leaves a pod.
pub fn from_pod(pod: &Pod, frame: Frame) -> Send {
    Send::new(Hook::FromPod(pod.ifindex), frame)
}

/// A packet that the stack delivers to a pod.
pub fn to_pod(frame: Frame) -> Send {
    Send::new(Hook::ToPod, frame)
}

/// A packet that comes in by the uplink.
pub fn from_outside(frame: Frame) -> Send {
    Send::new(Hook::FromOutside, frame)
}

/// A packet that the stack sends out by the uplink.
pub fn to_outside(frame: Frame) -> Send {
    Send::new(Hook::ToOutside, frame)
}

impl Send {
    fn new(hook: Hook, frame: Frame) -> Self {
        Send { hook, frame, gso: 0, outcome: Outcome::Pass, out: None, reasons: Vec::new(), new: 0, assured: 0 }
    }

    /// Goes on to the stack, changed.
    pub fn passes_as(mut self, out: Frame) -> Self {
        self.out = Some(out);
        self
    }

    pub fn drops(mut self, reason: Reason) -> Self {
        self.outcome = Outcome::Drop;
        self.counts(&[reason])
    }

    /// Delivered to a pod's device, and counted as that.
    pub fn delivers_to(mut self, pod: &Pod, out: Frame) -> Self {
        (self.outcome, self.out) = (Outcome::Deliver(pod.ifindex), Some(out));
        self.counts(&[Reason::REDIRECTED])
    }

    /// Forwarded by the FIB, and counted as that.
    pub fn routes_as(self, out: Frame) -> Self {
        self.forwards_as(out).counts(&[Reason::ROUTED])
    }

    /// Forwarded by the FIB.
    pub fn forwards_as(mut self, out: Frame) -> Self {
        (self.outcome, self.out) = (Outcome::Route, Some(out));
        self
    }

    /// Opens a flow whose client the backend sees as the node.
    pub fn opens_masqueraded(self) -> Self {
        self.opens().counts(&[Reason::MASQUERADED])
    }

    /// Opens the masquerade of a flow that is open already.
    pub fn masquerades(self) -> Self {
        self.counts(&[Reason::MASQUERADED]).entries(2, 0)
    }

    /// Goes back where it came from.
    pub fn reflects(mut self, out: Frame) -> Self {
        (self.outcome, self.out) = (Outcome::Reflect, Some(out));
        self
    }

    /// Counts each of these reasons once more.
    pub fn counts(mut self, reasons: &[Reason]) -> Self {
        self.reasons.extend(reasons);
        self
    }

    /// Changes the number of entries in `CT_NEW` and `CT`.
    pub fn entries(mut self, new: i64, assured: i64) -> Self {
        (self.new, self.assured) = (self.new + new, self.assured + assured);
        self
    }

    /// Opens a flow.
    pub fn opens(self) -> Self {
        self.counts(&[Reason::NEW_FLOW]).entries(2, 0)
    }

    /// Shows that both ends have spoken.
    pub fn promotes(self) -> Self {
        self.entries(-2, 2)
    }

    /// The frame is a GSO frame of segments with this many payload bytes.
    pub fn gso(mut self, size: u32) -> Self {
        self.gso = size;
        self
    }
}

/// One step of a scenario.
pub enum Step {
    Send(Box<Send>),
    /// Seconds.
    Wait(u32),
    Change(Box<dyn Fn(&mut World)>),
    /// Every entry is in this state (`netlb_common::conntrack::state`).
    State(u8),
}

/// A scenario with a sentence for a name.
pub struct Case {
    pub name: String,
    pub world: World,
    pub steps: Vec<Step>,
    /// Of the kernel, where one runs it.
    pub needs: &'static [Need],
}

/// A scenario without steps yet.
pub fn case(name: impl Into<String>, world: World) -> Case {
    Case { name: name.into(), world, steps: Vec::new(), needs: &[] }
}

impl Case {
    /// What a kernel must have for it.
    pub fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// Then this packet.
    pub fn send(mut self, send: Send) -> Self {
        self.steps.push(Step::Send(Box::new(send)));
        self
    }

    /// Then these packets.
    pub fn send_all(self, sends: impl IntoIterator<Item = Send>) -> Self {
        sends.into_iter().fold(self, Case::send)
    }

    /// Then so many seconds pass.
    pub fn wait(mut self, seconds: u32) -> Self {
        self.steps.push(Step::Wait(seconds));
        self
    }

    /// Then the world changes.
    pub fn change(mut self, f: impl Fn(&mut World) + 'static) -> Self {
        self.steps.push(Step::Change(Box::new(f)));
        self
    }

    /// Now every entry is in this state (`netlb_common::conntrack::state`).
    pub fn state(mut self, state: u8) -> Self {
        self.steps.push(Step::State(state));
        self
    }
}

impl Case {
    /// The frames it sends, before moved ports are known, with their GSO size.
    pub fn frames(&self) -> impl Iterator<Item = (Vec<u8>, u32)> {
        self.sends().map(|send| (send.frame.bytes(), send.gso))
    }

    fn sends(&self) -> impl Iterator<Item = &Send> {
        self.steps.iter().filter_map(|step| match step {
            Step::Send(send) => Some(&**send),
            Step::Wait(_) | Step::Change(_) | Step::State(_) => None,
        })
    }

    /// Runs the scenario, save packets the runner does not take. An error tells the step, what was expected, and what happened.
    pub fn run(&self, runner: &mut impl Runner) -> Result<(), String> {
        let mut moved = None;
        for (i, step) in self.steps.iter().enumerate() {
            let at = |e: String| format!("step {} of {}: {e}", i + 1, self.steps.len());
            match step {
                Step::Wait(seconds) => runner.wait(*seconds).map_err(|e| at(format!("{e:#}")))?,
                Step::Change(f) => runner.change(f).map_err(|e| at(format!("{e:#}")))?,
                Step::State(wanted) => self.check_state(runner, *wanted).map_err(at)?,
                Step::Send(send) => send.run(runner, &mut moved).map_err(at)?,
            }
        }
        Ok(())
    }

    fn check_state(&self, runner: &impl Runner, wanted: u8) -> Result<(), String> {
        let flows = runner.flows().map_err(|e| format!("{e:#}"))?;
        if flows.is_empty() {
            return Err(format!("no flow, expected one in {}", state::name(wanted)));
        }
        match flows.iter().find(|flow| flow.value.state != wanted) {
            None => Ok(()),
            Some(flow) => Err(format!("expected {}, got {}", state::name(wanted), line(flow))),
        }
    }
}

impl Send {
    fn run(&self, runner: &mut impl Runner, moved: &mut Option<u16>) -> Result<(), String> {
        let sent = self.ready(&self.frame, *moved)?.bytes();
        if !runner.takes(self.hook, &sent, self.gso) {
            return Ok(());
        }
        let before = Tally::take(runner)?;
        let got = runner.send(self.hook, &sent, self.gso).map_err(|e| format!("{}\n{}", e.0, show(&sent)))?;
        let after = Tally::take(runner)?;
        let story = |what: String| {
            format!("{what}\nsent {:?}:\n{}\ngot {:?}:\n{}", self.hook, show(&sent), got.verdict, show(&got.frame))
        };

        if !got.verdict.is(self.outcome) {
            return Err(story(format!("expected {:?}, got {:?}", self.outcome, got.verdict)));
        }
        let wanted = self.out.as_ref().unwrap_or(&self.frame);
        if self.outcome != Outcome::Drop {
            if wanted.is_unresolved() && moved.is_none() {
                *moved = Some(moved_port(&got.frame, self.reasons.contains(&Reason::MASQUERADED)).map_err(&story)?);
            }
            let wanted = self.ready(wanted, *moved)?.bytes();
            let macs = if self.outcome == Outcome::Route { MACS } else { 0 };
            if got.frame.get(macs..) != wanted.get(macs..) {
                return Err(story(format!("expected\n{}\n{}", show(&wanted), difference(&wanted, &got.frame))));
            }
            if verify(&sent).is_ok()
                && let Err(e) = verify(&got.frame)
            {
                return Err(story(format!("a good packet became a bad one: {e}")));
            }
        }

        let mut counted = BTreeMap::new();
        for reason in &self.reasons {
            *counted.entry(reason.0).or_default() += 1;
        }
        let delta = after.counted_since(&before);
        if delta != counted {
            return Err(story(format!("expected counters {}, got {}", names(&counted), names(&delta))));
        }
        let entries = (after.new - before.new, after.assured - before.assured);
        if entries != (self.new, self.assured) {
            return Err(story(format!(
                "expected entries {:+} in CT_NEW and {:+} in CT, got {:+} and {:+}:\n{}",
                self.new,
                self.assured,
                entries.0,
                entries.1,
                after.flows.iter().map(line).collect::<Vec<_>>().join("\n")
            )));
        }
        check_pairs(&after.flows).map_err(story)
    }

    fn ready(&self, frame: &Frame, moved: Option<u16>) -> Result<Frame, String> {
        match (frame.is_unresolved(), moved) {
            (false, _) => Ok(frame.clone()),
            (true, Some(port)) => Ok(frame.clone().resolve(port)),
            (true, None) => Err(format!("port {MOVED} stands for a moved port, and none was moved yet")),
        }
    }
}

/// The source port of a frame, which must be one that flows are moved to: of the node's own for such, if they are masqueraded, else above the usual
/// listeners.
fn moved_port(frame: &[u8], masqueraded: bool) -> Result<u16, String> {
    let ip = dissect(frame)?.ip.ok_or("no IP packet where a moved port is expected")?;
    let port = frame.get(ip.l4..ip.l4 + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let range = if masqueraded { SNAT_PORTS } else { 32_768..61_000 };
    if range.contains(&port) { Ok(port) } else { Err(format!("a flow was moved to source port {port}")) }
}

struct Tally {
    counters: BTreeMap<u8, u64>,
    flows: Vec<Flow>,
    new: i64,
    assured: i64,
}

impl Tally {
    fn take(runner: &impl Runner) -> Result<Self, String> {
        let counters = runner.counters().map_err(|e| format!("{e:#}"))?;
        let flows = runner.flows().map_err(|e| format!("{e:#}"))?;
        let assured = flows.iter().filter(|flow| flow.assured).count() as i64;
        Ok(Tally { counters, new: flows.len() as i64 - assured, assured, flows })
    }

    fn counted_since(&self, before: &Tally) -> BTreeMap<u8, u64> {
        self.counters
            .iter()
            .map(|(reason, n)| (*reason, n - before.counters.get(reason).copied().unwrap_or(0)))
            .filter(|(_, n)| *n != 0)
            .collect()
    }
}

/// Each live entry has its other direction, in the same tier and state, about the same backend, and each undoes the other.
pub fn check_pairs(flows: &[Flow]) -> Result<(), String> {
    for flow in flows.iter().filter(|flow| flow.age <= flow.value.timeout) {
        let v = &flow.value;
        let answer = CtKey::from_words(v.dst, v.src, v.ports.rotate_left(16), flow.key.proto());
        let Some(other) = flows.iter().find(|other| other.key == answer) else {
            return Err(format!("{} has no other direction", line(flow)));
        };
        let o = &other.value;
        let back = CtKey::from_words(o.dst, o.src, o.ports.rotate_left(16), other.key.proto());
        let agree = other.assured == flow.assured
            && (v.state, v.timeout, v.backend, v.backend_generation, v.service)
                == (o.state, o.timeout, o.backend, o.backend_generation, o.service)
            && v.flags ^ o.flags == flags::REPLY
            && (v.delta_addr, v.delta_port) == (!o.delta_addr, !o.delta_port);
        if back != flow.key || !agree {
            return Err(format!("the two directions of a flow differ:\n{}\n{}", line(flow), line(other)));
        }
    }
    Ok(())
}

/// One line for an entry.
pub fn line(flow: &Flow) -> String {
    let tuple = |src: Addr, dst: Addr, ports: u32| {
        let key = CtKey::from_words(src, dst, ports, 0);
        format!("{src}:{} > {dst}:{}", key.sport().get(), key.dport().get())
    };
    let (key, v) = (&flow.key, &flow.value);
    format!(
        "{} proto {} {} => {} {} flags {:#x} backend {}.{} hop {}.{} timeout {} age {} packets {} bytes {}",
        if flow.assured { "CT" } else { "CT_NEW" },
        key.proto(),
        tuple(key.src, key.dst, key.ports()),
        tuple(v.src, v.dst, v.ports),
        state::name(v.state),
        v.flags,
        v.backend,
        v.backend_generation,
        v.hop,
        v.hop_generation,
        v.timeout,
        flow.age,
        v.packets,
        v.bytes,
    )
}

/// Reason numbers as names, `{new_flow: 1}`.
pub fn names(counters: &BTreeMap<u8, u64>) -> String {
    let mut text = String::from("{");
    for (i, (number, n)) in counters.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let name = Reason(*number).name().unwrap_or("no such reason");
        write!(text, "{comma}{name}: {n}").expect("writing to a String does not fail");
    }
    text + "}"
}

/// The first byte at which two frames differ.
pub fn difference(wanted: &[u8], got: &[u8]) -> String {
    match wanted.iter().zip(got).position(|(a, b)| a != b) {
        Some(at) => format!("first different byte: {at}, expected {:02x}, got {:02x}", wanted[at], got[at]),
        None => format!("expected {} bytes, got {}", wanted.len(), got.len()),
    }
}
