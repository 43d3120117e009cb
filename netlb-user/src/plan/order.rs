//! The order of writes: the only place that knows it.

use super::op::MapOp;

/// When a write happens. Read downwards, this is the update protocol:
///
/// A new Service gets its address entry before its ports, and loses it after them: a port entry never stands without its address entry, so the
/// undefined ports of a live VIP are always refused, never taken for an unallocated address. Source ranges are widened before a switch and
/// narrowed after it. A backend is written before any list names it, and
/// leaves only after no list names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    Config,
    /// Uplinks and clients: gone ones first, whose place another may need.
    HostGone,
    Host,
    /// Endpoint records: gone devices first lose theirs, so that nothing is delivered to who comes after them.
    Endpoint,
    /// Address and interface index → endpoint: upserts, then deletes.
    EndpointIndex,
    EndpointIndexGone,
    /// Backends that are new, or take flows again.
    Backend,
    /// Fresh blocks, seen by nobody.
    Slots,
    /// Source ranges that come: a switch that restricts its frontend must not shut out who is allowed.
    Range,
    /// Address entries of new VIPs, and of addresses of this node.
    Address,
    /// The switch: one write a frontend.
    Switch,
    /// Frontends that are gone.
    Withdraw,
    /// Address entries of VIPs, or of addresses of this node, that are gone.
    WithdrawAddress,
    /// Source ranges that no frontend has any more.
    RangeGone,
    /// Backends that no list names any more: draining or removed.
    Leave,
    /// Removed backends that no flow names any more.
    Free,
}

/// A write, and the chain it belongs to.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    pub op: MapOp,
    /// If a write fails, later ones of its chain must not be done: they would show what is not there. Other chains go on.
    pub chain: u32,
}

/// Writes in order. A plan replaces any plan made before it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The writes alone.
    pub fn ops(&self) -> impl Iterator<Item = &MapOp> {
        self.steps.iter().map(|step| &step.op)
    }
}

/// Collects writes in any order, gives them out in the right one.
#[derive(Default)]
pub(super) struct Draft {
    steps: Vec<(Phase, usize, MapOp)>,
    /// Union-find over chains: `parent[i] == i` at a root.
    parent: Vec<usize>,
}

impl Draft {
    /// A new chain.
    pub(super) fn chain(&mut self) -> usize {
        self.parent.push(self.parent.len());
        self.parent.len() - 1
    }

    /// From now on two chains fail together.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }

    pub(super) fn push(&mut self, phase: Phase, chain: usize, op: MapOp) {
        self.steps.push((phase, chain, op));
    }

    pub(super) fn finish(mut self) -> Plan {
        let mut steps = std::mem::take(&mut self.steps);
        // Stable: within a phase, the order in which they were found.
        steps.sort_by_key(|(phase, _, _)| *phase);
        let step = |(_, chain, op)| Step { op, chain: self.root(chain) as u32 };
        Plan { steps: steps.into_iter().map(step).collect() }
    }

    fn root(&self, mut chain: usize) -> usize {
        while self.parent[chain] != chain {
            chain = self.parent[chain];
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_come_out_by_phase_and_joined_chains_are_one() {
        let mut draft = Draft::default();
        let (a, b, c) = (draft.chain(), draft.chain(), draft.chain());
        let del = |ifindex| MapOp::DeleteEndpointByIfindex { ifindex };
        draft.push(Phase::Leave, a, del(1));
        draft.push(Phase::Switch, b, del(2));
        draft.push(Phase::Switch, c, del(3));
        draft.join(a, b);
        let got: Vec<_> = draft.finish().steps.into_iter().map(|s| (s.op, s.chain)).collect();
        assert_eq!(got, [(del(2), 0), (del(3), 2), (del(1), 0)]);
    }
}
