//! `netlb trace`: what would happen to a packet, here and now. The datapath's own code (`netlb_ebpf`, the same functions as in the kernel) runs over
//! the live maps; what it writes goes to an overlay and is forgotten.
//!
//! - [`ask`]: names to addresses. [`frame`]: the packet. [`overlay`]: the tables, and every look-up noted as an [`event`].
//! - [`network`]: links, and the node's FIB. [`live`]: the pinned maps and the clock.
//! - [`journey`]: from hook to hook, through the host's routing; the host's own packet filter is not asked.
//! - [`words`]: all of it for people, and for programs.

pub mod ask;
pub mod event;
pub mod frame;
pub mod journey;
pub mod live;
pub mod network;
pub mod overlay;
#[cfg(test)]
mod tests;
pub mod words;

use anyhow::Result;
use netlb_common::Addr;
use netlb_common::config::flags;
use netlb_common::frontend::FrontendValue;
use netlb_ebpf::enter::Device;
use netlb_ebpf::service;
use netlb_ebpf::tables::Tables as _;

use crate::plan::Names;
use ask::{Asked, Question};
use event::Event;
use journey::{End, Hook, Journey, Outcome, Stage, Start, Traveller};
use network::Network;
use overlay::Overlay;

/// The answer to a question.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace {
    pub asked: Asked,
    /// The socket call before the packet, where hooks see it.
    pub call: Option<Stage>,
    /// The packet, unless the call failed.
    pub there: Option<Journey>,
    /// Its answer, if something answers.
    pub back: Option<Journey>,
    pub choice: Option<Choice>,
}

/// How a backend was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    pub frontend: FrontendValue,
    /// Backend ids of the list that counts for this client, as they stand in the slots: as often as their weight asks.
    pub list: Vec<u32>,
    /// The chosen one.
    pub backend: u32,
    pub by: By,
}

/// Who chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    Scheduler,
    /// The client's session.
    Session,
    /// A flow that was there before.
    Flow,
    /// The socket, by a hash that a real one would have another of.
    Socket,
}

/// Follows a packet, and its answer.
///
/// # Errors
/// If the question names what is not known.
pub fn trace(question: &Question, overlay: &Overlay<'_>, network: &dyn Network, names: &Names) -> Result<Trace> {
    let asked = ask::resolve(question, overlay, network, names)?;
    Ok(follow(asked, overlay, network))
}

fn follow(mut asked: Asked, overlay: &Overlay<'_>, network: &dyn Network) -> Trace {
    let traveller = Traveller { overlay, network };
    let vip = asked.shape.dst;
    let call = namespace(&asked, overlay).map(|netns| traveller.call(&mut asked.shape.dst, asked.shape.proto, netns));
    let goes_on = call.as_ref().is_none_or(|stage| stage.outcome == Outcome::Passed);
    if asked.start == Start::Node && asked.shape.src.ip().is_unspecified() {
        let own = network.output(None, asked.shape.dst.ip()).ok().and_then(|way| way.source);
        if let Some(ip) = own {
            asked.shape.src.set_ip(ip);
        }
    }
    let there = goes_on.then(|| traveller.send(asked.start, asked.shape));
    let choice =
        there.iter().flat_map(|journey| &journey.stages).chain(&call).find_map(|stage| choice(stage, &asked, overlay));
    let answer = there.as_ref().and_then(|journey| traveller.answer(journey));
    let back = answer.map(|(start, shape)| traveller.send(start, shape));
    asked.shape.dst = vip;
    Trace { asked, call, there, back, choice }
}

/// The network namespace whose socket call comes before the packet, if a hook sees it: of the node, and with `--accel socket` of its pods. SCTP
/// has no such hooks.
fn namespace(asked: &Asked, overlay: &Overlay<'_>) -> Option<u64> {
    let config = overlay.config()?;
    if !ask::opens(&asked.shape) || asked.shape.proto == netlb_common::proto::SCTP {
        return None;
    }
    match asked.start {
        Start::Node => Some(config.netns_cookie),
        Start::Pod(_) if config.flags & flags::SOCKET_ALL != 0 => {
            let src = Addr::from_ip(asked.shape.src.ip());
            let clients = &overlay.tables().clients;
            clients.iter().find(|(_, pod)| pod.addr4 == src || pod.addr6 == src).map(|(netns, _)| *netns)
        }
        Start::Pod(_) | Start::Outside(_) => None,
    }
}

/// How this hook chose a backend, if it did.
fn choice(stage: &Stage, asked: &Asked, overlay: &Overlay<'_>) -> Option<Choice> {
    let frontend = stage.events.iter().find_map(|event| {
        let Event::Frontend { found: Some(value), .. } = event else { return None };
        (value.service != 0).then_some(*value)
    });
    let chosen = stage.events.iter().find_map(|event| {
        let Event::Chosen { backend } = event else { return None };
        Some(*backend)
    });
    let Some(backend) = chosen else { return kept(stage, overlay) };
    let frontend = frontend?;
    let list = {
        let inside = match stage.hook {
            Hook::FromPod | Hook::FromOutside => {
                let device = if stage.hook == Hook::FromOutside {
                    Device::uplink(stage.ifindex)
                } else {
                    Device::pod(stage.ifindex)
                };
                let src = Addr::from_ip(asked.shape.src.ip());
                overlay.config().is_some_and(|c| service::is_pod(overlay, c, src, device.ifindex(), device.is_uplink()))
            }
            Hook::ToPod | Hook::ToOutside | Hook::Socket | Hook::Stack => true,
        };
        // What was looked up for these words is no step of the packet's.
        drop(overlay.take_events());
        let list = service::list(&frontend, !inside);
        let slots = &overlay.tables().slots;
        (0..list.count).map(|i| slots.get(&list.slots.wrapping_add(i)).copied().unwrap_or(0)).collect()
    };
    let by_session = stage.events.iter().any(|event| matches!(event, Event::SessionKept { .. }))
        && !stage.events.iter().any(|event| matches!(event, Event::Slot { .. }));
    let by = if by_session {
        By::Session
    } else if stage.hook == Hook::Socket {
        By::Socket
    } else {
        By::Scheduler
    };
    Some(Choice { frontend, list, backend, by })
}

/// The backend of the flow that the packet belongs to.
fn kept(stage: &Stage, overlay: &Overlay<'_>) -> Option<Choice> {
    let entry = stage.events.iter().find_map(|event| {
        let Event::Flow { found: Some(entry), .. } = event else { return None };
        (entry.backend != 0).then_some(*entry)
    })?;
    let went_on = matches!(
        stage.outcome,
        Outcome::Passed | Outcome::Delivered { .. } | Outcome::Forwarded { .. } | Outcome::Hairpin
    );
    let of_service = |value: &&FrontendValue| value.service == entry.service;
    let frontend = *overlay.tables().frontends.values().find(of_service)?;
    went_on.then_some(Choice { frontend, list: Vec::new(), backend: entry.backend, by: By::Flow })
}

impl Trace {
    /// Where the packet ends; `None`: the socket call failed, and there is none.
    pub fn end(&self) -> Option<End> {
        self.there.as_ref().map(|journey| journey.end)
    }
}
