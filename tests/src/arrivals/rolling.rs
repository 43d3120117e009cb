//! A rolling update under load: pods are replaced one by one, each accepts for two seconds after it was marked terminating, then
//! ends its connections in order. Nobody who opens, uses or reopens a connection may notice.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use netlb_testnode::address::{self, Family};
use netlb_testnode::load::{Done, Judge, Load};
use netlb_testnode::netns::NetNs;
use netlb_testnode::wire::Answer;

use crate::rig::Rig;

const PODS: usize = 4;
const DOOR: u16 = 30_130;
/// Connections that stay open, and new ones a second; each thread has its share.
const OPEN: usize = 200;
const NEW_A_SECOND: u32 = 500;
const THREADS: usize = 8;
/// How long a pod accepts after it was marked.
const GRACE: Duration = Duration::from_secs(2);

fn objects(version: u8) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: rolled}}
spec:
  replicas: {PODS}
  strategy: {{rollingUpdate: {{maxSurge: 1}}}}
  template:
    metadata: {{labels: {{app: rolled, version: v{version}}}}}
    spec: {{containers: [{{name: c, ports: [{{containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: rolled}}
spec:
  type: NodePort
  selector: {{app: rolled}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {DOOR}}}]
"
    )
}

/// How often each open connection is used.
const TURN: Duration = Duration::from_millis(200);

/// What clients and the update know of each other.
#[derive(Default)]
struct Pods {
    /// Pods that agents have reported as terminating: they get no new connections.
    leaving: Mutex<BTreeSet<String>>,
    /// Pods that are no more.
    gone: Mutex<BTreeSet<String>>,
}

impl Pods {
    fn names(set: &Mutex<BTreeSet<String>>) -> BTreeSet<String> {
        set.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Neither a pod that is gone nor, over a new connection, one that is known to leave may be the one to answer.
impl Judge for Pods {
    type Known = [BTreeSet<String>; 2];

    fn known(&self) -> Self::Known {
        [Self::names(&self.leaving), Self::names(&self.gone)]
    }

    fn judge(&self, [leaving, gone]: &Self::Known, answer: &str, new: bool) -> Result<()> {
        let pod = answer.parse::<Answer>().map_err(anyhow::Error::msg)?.pod;
        ensure!(!gone.contains(&pod), "{pod}, which is gone, answered");
        ensure!(!new || !leaving.contains(&pod), "{pod}, which is leaving, answered");
        Ok(())
    }
}

/// Replaces all pods, one after the other.
fn replace(rig: &Rig, shared: &Pods) -> Result<()> {
    let first: BTreeSet<String> = rig.node.pods_of("rolled").iter().map(|pod| pod.key().name.clone()).collect();
    let mut marked = Instant::now();
    let mut revision = rig.node.apply(&objects(2))?;
    let mut steps = 0;
    loop {
        rig.node.wait_applied(revision)?;
        let leaving = rig.node.terminating();
        // Those who went with this revision are gone now, those who are marked in it are known to leave.
        let names = |pods: &[Arc<netlb_testnode::Pod>]| -> BTreeSet<String> {
            pods.iter().map(|pod| pod.key().name.clone()).collect()
        };
        let before = Pods::names(&shared.leaving);
        let now = names(&leaving);
        shared.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(before.difference(&now).cloned());
        shared.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(now);
        if leaving.is_empty() {
            break;
        }
        ensure!(leaving.len() == 1, "{} pods leave at once", leaving.len());
        steps += 1;
        std::thread::sleep(GRACE.saturating_sub(marked.elapsed()));
        for pod in &leaving {
            pod.drain()?;
            rig.eventually("its clients have left a draining pod", || {
                let open = pod.counts()?.open;
                ensure!(open == 0, "{open} connections to {} are open", pod.key());
                Ok(())
            })?;
        }
        marked = Instant::now();
        revision = rig.node.remove_terminating()?;
    }
    let last: BTreeSet<String> = rig.node.pods_of("rolled").iter().map(|pod| pod.key().name.clone()).collect();
    ensure!(
        steps == PODS && last.len() == PODS && last.is_disjoint(&first),
        "{steps} steps from {first:?} to {last:?}"
    );
    Ok(())
}

pub(super) fn update(rig: &Rig) -> Result<()> {
    rig.apply(&objects(1))?;
    let vips: Vec<SocketAddr> =
        Family::BOTH.into_iter().map(|family| rig.frontend("rolled", family, 80)).collect::<Result<_>>()?;
    let doors: Vec<SocketAddr> = rig
        .node
        .nodes()
        .iter()
        .flat_map(|node| Family::BOTH.map(|family| SocketAddr::new(address::node(node.number).of(family), DOOR)))
        .collect();
    let client = rig.pod("client")?;
    let places: [(&NetNs, &[SocketAddr]); 2] = [(client.net(), &vips), (rig.node.outside().place.net(), &doors)];
    let load = Load::new(Pods::default());
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let load = &load;
        let mut workers = Vec::new();
        for turn in 0..THREADS {
            let (net, targets) = places[turn % places.len()];
            let share = NEW_A_SECOND / THREADS as u32;
            workers.push(scope.spawn(move || net.run(|| load.hold(targets, OPEN / THREADS, TURN))?));
            workers.push(scope.spawn(move || net.run(|| load.knock(targets, share))?));
        }
        let result = rig
            .eventually("all connections are open", || {
                ensure!(load.done().opened >= OPEN as u64 * 2, "not yet");
                Ok(())
            })
            .and_then(|()| replace(rig, &load.judge));
        load.stop();
        let mut wrong = Vec::new();
        for worker in workers {
            wrong.extend(worker.join().map_err(|_| anyhow!("a client panicked"))?.err());
        }
        if !wrong.is_empty() {
            let lines: Vec<String> = wrong.iter().map(|error| format!("{error:#}")).collect();
            bail!("{} of {} clients noticed: {}", wrong.len(), THREADS * 2, lines.join("; "));
        }
        result
    })?;
    let seconds = started.elapsed().as_secs();
    let Done { opened, asked, .. } = load.done();
    println!("  {opened} connections were opened in {seconds} s, and open ones were used {asked} times");
    // A machine that is far too slow for the load would have proved nothing.
    ensure!(opened > u64::from(NEW_A_SECOND) * seconds / 2, "only {opened} connections were opened in {seconds} s");
    Ok(())
}
