//! Names that pods can resolve: a hosts file a namespace, in place of a name server.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::cluster::{Cluster, PodState};
use crate::slices::selects;

/// The hosts file for pods of `namespace`: every Service's names, short ones for those of the same namespace, headless
/// ones with their pods' addresses; and a name for each pod of a headless Service, as a StatefulSet's pods have.
#[must_use]
pub fn hosts(cluster: &Cluster, namespace: &str) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let mut line = |address: IpAddr, names: &[String]| {
        writeln!(text, "{address} {}", names.join(" ")).expect("writing to a string cannot fail");
    };
    for (key, spec) in cluster.services() {
        if spec.is_external_name() {
            continue;
        }
        let names = names(&key.name, &key.namespace, namespace);
        for address in spec.addresses() {
            line(address, &names);
        }
        if spec.is_headless() {
            let ready: BTreeMap<_, _> = cluster
                .pods()
                .iter()
                .filter(|(pod, record)| {
                    pod.namespace == key.namespace
                        && record.state == PodState::Ready
                        && selects(&spec.selector, &record.labels)
                })
                .collect();
            for family in spec.families() {
                for (pod, record) in &ready {
                    let mut all = names.clone();
                    all.extend(self::names(&format!("{}.{}", pod.name, key.name), &key.namespace, namespace));
                    line(record.addresses.of(family), &all);
                }
            }
        }
    }
    text
}

fn names(name: &str, namespace: &str, from: &str) -> Vec<String> {
    let mut names = vec![
        format!("{name}.{namespace}.svc.cluster.local"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
    ];
    if namespace == from {
        names.push(name.to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::Manifests;

    #[test]
    fn short_names_are_for_the_own_namespace() {
        let mut manifests = Manifests::default();
        manifests.parse(
            "test",
            "kind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.9, ipFamilyPolicy: SingleStack}\n\
             ---\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, selector: {app: db}}\n\
             ---\nkind: StatefulSet\nmetadata: {name: db}\nspec: {template: {metadata: {labels: {app: db}}}}\n",
        );
        let mut cluster = Cluster::new(1);
        cluster.put(manifests);
        for key in cluster.plan().unwrap().start {
            cluster.set_state(&key, PodState::Ready);
        }
        let here = hosts(&cluster, "default");
        assert!(here.contains("10.96.0.9 web.shop.svc.cluster.local web.shop.svc web.shop\n"), "{here}");
        assert!(
            here.contains("10.244.1.2 db.default.svc.cluster.local db.default.svc db.default db db-0.db."),
            "{here}"
        );
        assert!(here.contains("fd00:244:0:1::2 db."), "{here}");
        assert!(hosts(&cluster, "shop").contains("web.shop.svc web.shop web\n"));
    }
}
