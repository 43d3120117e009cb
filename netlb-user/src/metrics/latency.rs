//! How long the network takes to follow a change of endpoints: SIG Scalability's network programming latency, measured as kube-proxy does
//! (`EndpointsChangeTracker`). Pure: times come in, as time since 1970.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Family, ServiceName, SliceSpec};

/// Changes that are known and not in effect yet.
pub(super) struct Latency {
    /// Since when somebody watches: what happened before says nothing about us.
    began: Duration,
    waiting: BTreeMap<(ServiceName, Family), Vec<Duration>>,
}

impl Latency {
    pub(super) fn new(began: Duration) -> Self {
        Latency { began, waiting: BTreeMap::new() }
    }

    /// A slice became this. What changed it happened at the time it says, if it says one and that was not before our time.
    pub(super) fn changed(&mut self, slice: &SliceSpec) {
        if let (Some(service), Some(at)) = (&slice.service, slice.last_change.filter(|at| *at > self.began)) {
            self.waiting.entry((service.clone(), slice.family)).or_default().push(at);
        }
    }

    /// A slice is gone. The time it said is that of the change before; what waited for its Service is not told either.
    pub(super) fn removed(&mut self, slice: &SliceSpec) {
        if let Some(service) = &slice.service {
            self.waiting.remove(&(service.clone(), slice.family));
        }
    }

    /// All of it is in effect now: how long each change took.
    pub(super) fn applied(&mut self, now: Duration) -> Vec<(Family, Duration)> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        waiting
            .flat_map(|((_, family), times)| times.into_iter().map(move |at| (family, now.saturating_sub(at))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Meta, SliceName};

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn slice(service: &str, family: Family, at: Option<u64>) -> SliceSpec {
        SliceSpec {
            name: SliceName::new("a", &format!("{service}-1")),
            meta: Meta::default(),
            service: Some(ServiceName::new("a", service)),
            family,
            ports: Vec::new(),
            endpoints: Vec::new(),
            last_change: at.map(Duration::from_secs),
        }
    }

    #[test]
    fn each_change_of_endpoints_counts_once_it_is_in_effect() {
        let mut latency = Latency::new(s(100));
        latency.changed(&slice("web", Family::V4, Some(101)));
        latency.changed(&slice("web", Family::V4, Some(103)));
        latency.changed(&slice("web", Family::V6, Some(104)));
        assert_eq!(latency.applied(s(105)), [(Family::V4, s(4)), (Family::V4, s(2)), (Family::V6, s(1))]);
        assert_eq!(latency.applied(s(106)), []);
        latency.changed(&slice("web", Family::V4, Some(200)));
        assert_eq!(latency.applied(s(199)), [(Family::V4, s(0))], "their clock is ahead");
    }

    #[test]
    fn what_says_nothing_of_us_is_left_out() {
        let mut latency = Latency::new(s(100));
        latency.changed(&slice("old", Family::V4, Some(100)));
        latency.changed(&slice("silent", Family::V4, None));
        latency.changed(&SliceSpec { service: None, ..slice("nobody", Family::V4, Some(101)) });
        latency.changed(&slice("gone", Family::V4, Some(101)));
        latency.changed(&slice("gone", Family::V6, Some(102)));
        latency.removed(&slice("gone", Family::V4, Some(101)));
        assert_eq!(latency.applied(s(110)), [(Family::V6, s(8))]);
    }
}
