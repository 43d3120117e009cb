//! NetworkPolicy (networking.k8s.io/v1): its name alone, since it is not enforced yet.

use super::meta::ObjectMeta;
use crate::model::{Object, PolicyName};

pub(super) fn convert(meta: ObjectMeta) -> Object {
    Object::NetworkPolicy(PolicyName { namespace: meta.namespace, name: meta.name }, meta.meta)
}
