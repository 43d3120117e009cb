//! ServiceCIDR (networking.k8s.io/v1).

use super::meta::ObjectMeta;
use super::place::{Place, Report, Reported};
use crate::model::ServiceCidrSpec;

pub(super) fn convert(root: &Place<'_>, meta: ObjectMeta, report: &mut Report) -> Result<ServiceCidrSpec, Reported> {
    let Some(spec) = root.object("spec", report)? else {
        return Err(report.field(root, "spec", "is missing", "give the ServiceCIDR a spec with cidrs"));
    };
    let list = spec.list("cidrs", report)?;
    let cidrs = list.iter().filter_map(|cidr| cidr.as_cidr(report).ok()).collect();
    Ok(ServiceCidrSpec { name: meta.name, meta: meta.meta, cidrs })
}
