//! Is the proxy itself well? It is until a change it read has waited too long to take effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::Family;

/// A point in time on two clocks: waiting is measured by the one that never jumps, people read the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Since some fixed point.
    pub since: Duration,
    pub wall: SystemTime,
}

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// The machine's own clocks.
pub fn system_clock() -> Clock {
    let began = Instant::now();
    Arc::new(move || Moment { since: began.elapsed(), wall: SystemTime::now() })
}

/// What Go's JSON makes of a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What `/healthz` and `/livez` know, by address family. A family without an update yet is healthy: it is starting.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    timeout: Duration,
    updated: BTreeMap<Family, Moment>,
    /// The oldest change that is read and not applied.
    queued: BTreeMap<Family, Moment>,
    node_eligible: bool,
}

/// The body, its keys in kube-proxy's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    /// Healthy, on a node that nothing is known of yet.
    pub fn new(timeout: Duration) -> Self {
        ProxyHealth { timeout, updated: BTreeMap::new(), queued: BTreeMap::new(), node_eligible: false }
    }

    /// A change was read.
    pub fn queued(&mut self, family: Family, now: Moment) {
        self.queued.entry(family).or_insert(now);
    }

    /// All changes read so far are applied.
    pub fn updated(&mut self, family: Family, now: Moment) {
        self.queued.remove(&family);
        self.updated.insert(family, now);
    }

    /// Whether load balancers may use the node.
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// No family waits for too long.
    pub fn is_healthy(&self, now: Moment) -> bool {
        self.updated.keys().all(|family| self.is_family_healthy(*family, now))
    }

    fn is_family_healthy(&self, family: Family, now: Moment) -> bool {
        self.queued.get(&family).is_none_or(|queued| now.since.saturating_sub(queued.since) < self.timeout)
    }

    /// What `/healthz` says: whether it is good, and the body.
    pub fn healthz(&self, now: Moment) -> (bool, String) {
        let good = self.is_healthy(now) && self.node_eligible;
        (good, self.body(now, good, Some(self.node_eligible)))
    }

    /// What `/livez` says, which no Node has a say in.
    pub fn livez(&self, now: Moment) -> (bool, String) {
        let good = self.is_healthy(now);
        (good, self.body(now, good, None))
    }

    fn body(&self, now: Moment, good: bool, node_eligible: Option<bool>) -> String {
        let last = self.updated.values().max_by_key(|updated| updated.since);
        // While all is good the last update is as recent as the question, as in times when kube-proxy updated without a change.
        let last = if good { Some(&now) } else { last };
        let status = self.updated.iter().map(|(family, updated)| {
            let healthy = self.is_family_healthy(*family, now);
            (family.kubernetes(), FamilyBody { last_updated: rfc3339(updated.wall), healthy })
        });
        let body = Body {
            last_updated: last.map_or_else(|| NEVER.to_owned(), |last| rfc3339(last.wall)),
            current_time: rfc3339(now.wall),
            node_eligible,
            healthy: self.is_healthy(now),
            status: status.collect(),
        };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

/// UTC, with as many digits of a second as it takes.
fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_else(|_| NEVER.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        let since = Duration::from_secs(seconds);
        Moment { since, wall: SystemTime::UNIX_EPOCH + since }
    }

    #[test]
    fn the_bodies_are_kube_proxys_to_the_byte() {
        let mut health = ProxyHealth::new(Duration::from_secs(10));
        let start = health.healthz(at(1));
        assert_eq!(
            start,
            (
                false,
                r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"1970-01-01T00:00:01Z","nodeEligible":false,"healthy":true}"#
                    .to_owned()
            )
        );
        health.set_node_eligible(true);
        health.updated(Family::V6, at(2));
        health.updated(Family::V4, at(3));
        health.queued(Family::V6, at(4));
        let body = r#"{"lastUpdated":"1970-01-01T00:00:03Z","currentTime":"1970-01-01T00:00:14Z","healthy":false,"status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:03Z","healthy":true},"IPv6":{"lastUpdated":"1970-01-01T00:00:02Z","healthy":false}}}"#;
        assert_eq!(health.livez(at(14)), (false, body.to_owned()));
        assert!(health.livez(at(13)).0, "ten seconds are not over");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(1250)), "1970-01-01T00:00:01.25Z");
    }

    #[test]
    fn a_queue_counts_from_its_oldest_change_and_before_the_first_update_it_is_a_start() {
        let mut health = ProxyHealth::new(Duration::from_secs(10));
        health.queued(Family::V4, at(0));
        assert!(health.is_healthy(at(100)), "still starting");
        health.updated(Family::V4, at(100));
        health.queued(Family::V4, at(101));
        health.queued(Family::V4, at(110));
        assert!(!health.is_healthy(at(111)));
        health.updated(Family::V4, at(111));
        assert!(health.is_healthy(at(500)));
    }

    #[test]
    fn the_wall_clock_may_jump() {
        let mut health = ProxyHealth::new(Duration::from_secs(10));
        health.updated(Family::V4, at(1));
        health.queued(Family::V4, at(2));
        let jumped = Moment { since: Duration::from_secs(3), wall: at(9000).wall };
        assert!(health.is_healthy(jumped));
    }
}
