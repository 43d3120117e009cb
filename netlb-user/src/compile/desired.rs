//! The compiled world, kept up to date change by change.

use std::collections::{BTreeMap, BTreeSet};

use super::cidrs::compile_cidrs;
use super::service::{ServiceTables, compile_service};
use crate::model::{Cidr, Dirty, Problem, ServiceName, World};

/// The results of compiling, by Service. Services without tables or problems are absent.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Compiled {
    pub services: BTreeMap<ServiceName, ServiceTables>,
    pub cidrs: Vec<Cidr>,
    service_problems: BTreeMap<ServiceName, BTreeSet<Problem>>,
    cidr_problems: Vec<Problem>,
}

impl Compiled {
    /// Compiles everything, slowly and obviously: what [`update`](Self::update) must equal.
    pub fn full(world: &World) -> Self {
        let mut compiled = Compiled::default();
        let services = world.services().map(|spec| spec.name.clone()).collect();
        compiled.update(world, &Dirty { services, devices: true, cidrs: true });
        compiled
    }

    /// Compiles again what is dirty.
    pub fn update(&mut self, world: &World, dirty: &Dirty) {
        for name in &dirty.services {
            let (tables, problems) = compile_service(world, name);
            if tables == ServiceTables::default() {
                self.services.remove(name);
            } else {
                self.services.insert(name.clone(), tables);
            }
            if problems.is_empty() {
                self.service_problems.remove(name);
            } else {
                self.service_problems.insert(name.clone(), problems);
            }
        }
        if dirty.cidrs {
            (self.cidrs, self.cidr_problems) = compile_cidrs(world);
        }
    }

    /// What could not be compiled as asked.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.service_problems.values().flatten().chain(&self.cidr_problems)
    }
}
