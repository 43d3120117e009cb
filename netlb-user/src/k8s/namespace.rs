//! Namespace (v1).

use super::meta::ObjectMeta;
use crate::model::NamespaceSpec;

pub(super) fn convert(meta: ObjectMeta) -> NamespaceSpec {
    NamespaceSpec { name: meta.name, meta: meta.meta, labels: meta.labels }
}
