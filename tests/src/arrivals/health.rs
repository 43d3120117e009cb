//! What a load balancer that asks the nodes is told, while endpoints come and go.

use anyhow::{Context, Result, ensure};
use netlb_testnode::{frontends, health};

use super::field;
use crate::rig::Rig;

pub(super) fn follows(rig: &Rig) -> Result<()> {
    rig.apply(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {name: asked}
spec: {replicas: 1, template: {metadata: {labels: {app: asked}}, spec: {containers: [{name: c}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: asked}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: asked}, ports: [{port: 80, targetPort: 8080}]}
",
    )?;
    let mut seen = Vec::new();
    for replicas in [1, 3, 0, 2] {
        rig.scale("asked", replicas)?;
        let checks = frontends::frontends(&rig.node.cluster()).health_checks;
        let check = checks.into_iter().find(|check| check.service == "default/asked").context("no health check")?;
        ensure!(field(rig, "asked", "/spec/healthCheckNodePort")? == u64::from(check.port), "another port");
        seen.push(check.ready.values().copied().collect::<Vec<_>>());
        // The server follows the tables that were just reported as applied.
        rig.eventually("both nodes say what they have", || {
            let wrong: Vec<_> = health::ask(&rig.node, std::slice::from_ref(&check))?
                .iter()
                .filter_map(health::HealthRow::wrong)
                .collect();
            ensure!(wrong.is_empty(), "{}", wrong.join("; "));
            Ok(())
        })?;
    }
    ensure!(seen.iter().any(|ready| ready.contains(&0)) && seen.iter().any(|ready| ready.contains(&2)), "{seen:?}");
    Ok(())
}
