//! Service CIDRs: ranges whose unowned addresses are dropped rather than sent on.

use std::collections::BTreeSet;

use netlb_common::config::MAX_CIDRS;

use crate::model::{Cidr, Problem, World};

/// The ranges of all ServiceCIDR objects, in name order, as far as the datapath has room; the others are reported.
pub fn compile_cidrs(world: &World) -> (Vec<Cidr>, Vec<Problem>) {
    let (mut kept, mut seen, mut problems) = (Vec::new(), BTreeSet::new(), Vec::new());
    for object in world.service_cidrs() {
        for (index, cidr) in object.cidrs.iter().enumerate() {
            if !seen.insert(*cidr) {
                continue;
            }
            if kept.len() < MAX_CIDRS {
                kept.push(*cidr);
                continue;
            }
            problems.push(Problem {
                file: object.meta.file.as_deref().map(str::to_owned),
                object: format!("ServiceCIDR {}", object.name),
                field: format!("spec.cidrs[{index}]"),
                message: format!(
                    "{cidr} is beyond the {MAX_CIDRS} ranges netlb keeps; its unused addresses are not dropped"
                ),
                remedy: "join neighbouring ranges into one".to_owned(),
            });
        }
    }
    (kept, problems)
}
