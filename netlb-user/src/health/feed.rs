//! What the one loop tells the servers, round by round.

use std::collections::BTreeSet;

use super::view::View;
use super::{Addresses, Health};
use crate::model::{NodeName, ServiceName, World};

/// Keeps the servers in step with the maps: what is planned is queued, what is written is answered.
pub struct Feed {
    health: Health,
    here: NodeName,
    view: View,
    /// Services that may have changed since the last plan that was written whole.
    touched: BTreeSet<ServiceName>,
    /// Something is known that is not in effect.
    pending: bool,
}

impl Feed {
    /// `here`: this node. From now on the first state has to come. No Service's port is opened before [`Health::set_addresses`] says where.
    pub fn new(health: Health, here: NodeName) -> Self {
        health.set_addresses(Addresses::These(BTreeSet::new()));
        health.all_updated();
        Feed { health, here, view: View::default(), touched: BTreeSet::new(), pending: false }
    }

    /// The servers.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Something is known that is not in effect yet.
    pub fn queued(&mut self) {
        self.pending = true;
        self.health.all_queued();
    }

    /// The world is this now, and these Services may have changed in it.
    pub fn learned(&mut self, world: &World, touched: BTreeSet<ServiceName>) {
        self.pending |= !touched.is_empty();
        self.touched.extend(touched);
        self.health.see_node(world, &self.here);
    }

    /// All that was learned is in effect.
    pub fn applied(&mut self, world: &World) {
        if !std::mem::take(&mut self.pending) {
            return;
        }
        self.view.update(world, &self.here, &std::mem::take(&mut self.touched));
        self.health.sync_services(self.view.ports.clone());
        self.health.sync_endpoints(&self.view.ready);
        self.health.all_updated();
    }
}
