//! The differences of the host: `UPLINKS` and `CLIENTS`. Addresses that serve NodePorts stand in `FRONTENDS`: see `services`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlb_common::Addr;
use netlb_common::client::ClientValue;
use netlb_common::uplink::{UplinkValue, flags};

use super::op::MapOp;
use super::order::{Draft, Phase};
use super::shadow::Shadow;
use crate::model::{HostState, Problem};
use crate::store::Capacity;

/// What this node's devices and pods want in the maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    uplinks: BTreeMap<u32, UplinkValue>,
    clients: BTreeMap<u64, ClientValue>,
    /// What the agent found has been said: until then what a restarted agent left stays.
    known: bool,
    /// The last plan had writes.
    unsettled: bool,
    problems: Vec<Problem>,
}

impl Host {
    /// This is what there is; what does not fit is left out and reported.
    pub(super) fn set(&mut self, host: &HostState, capacity: Capacity) {
        let addr = |ip: Option<IpAddr>| ip.map_or(Addr::UNSPECIFIED, Addr::from_ip);
        let uplinks = host.uplinks.iter().map(|(ifindex, uplink)| {
            let flags = if uplink.pod_source { flags::POD_SOURCE } else { 0 };
            let value = UplinkValue { addr4: addr(uplink.v4), addr6: addr(uplink.v6), mtu: uplink.mtu, flags };
            (*ifindex, value)
        });
        let clients = host.clients.iter();
        let clients = clients.map(|(netns, pod)| (*netns, ClientValue { addr4: addr(pod.v4), addr6: addr(pod.v6) }));
        (self.uplinks, self.clients) =
            (uplinks.take(capacity.uplinks as usize).collect(), clients.take(capacity.clients as usize).collect());
        (self.known, self.unsettled) = (true, true);
        self.problems.clear();
        let excess = host.uplinks.values().skip(self.uplinks.len());
        self.problems.extend(excess.map(|uplink| Problem {
            file: None,
            object: format!("device {}", uplink.name),
            field: String::new(),
            message:
                "UPLINKS has no room for it; what leaves by it is masqueraded to the node's primary address".to_owned(),
            remedy: "limit the uplinks with --devices".to_owned(),
        }));
        let excess = host.clients.len() - self.clients.len();
        if excess > 0 {
            self.problems.push(Problem {
                file: None,
                object: "maps".to_owned(),
                field: String::new(),
                message: format!("CLIENTS has no room for {excess} pods; their sockets are left to the packets"),
                remedy: "nothing: both ways lead to the same backends".to_owned(),
            });
        }
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Writes that bring the maps there, if something changed or an earlier plan was not done.
    pub(super) fn plan(&mut self, shadow: &Shadow, draft: &mut Draft) {
        if !self.known || !std::mem::take(&mut self.unsettled) {
            return;
        }
        let mut push = |phase, op| {
            let chain = draft.chain();
            draft.push(phase, chain, op);
            self.unsettled = true;
        };
        for ifindex in shadow.uplinks.keys().filter(|ifindex| !self.uplinks.contains_key(ifindex)) {
            push(Phase::HostGone, MapOp::DeleteUplink { ifindex: *ifindex });
        }
        for netns in shadow.clients.keys().filter(|netns| !self.clients.contains_key(netns)) {
            push(Phase::HostGone, MapOp::DeleteClient { netns: *netns });
        }
        for (ifindex, value) in
            self.uplinks.iter().filter(|(ifindex, value)| shadow.uplinks.get(ifindex) != Some(value))
        {
            push(Phase::Host, MapOp::SetUplink { ifindex: *ifindex, value: *value });
        }
        for (netns, value) in self.clients.iter().filter(|(netns, value)| shadow.clients.get(netns) != Some(value)) {
            push(Phase::Host, MapOp::SetClient { netns: *netns, value: *value });
        }
    }
}
