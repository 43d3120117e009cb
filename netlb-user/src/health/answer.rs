//! The answers, byte for byte.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::watch;

use super::proxy::{Clock, Moment, ProxyHealth};
use super::server::Site;
use super::table::Table;
use super::{Pages, Probe, Probed};
use crate::http::{Answer, Question};
use crate::model::ServiceName;

/// How much of the traffic a load balancer that weighs its nodes shall send here.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A Service's health check port: every path and method is answered alike.
fn service(name: &ServiceName, ready: usize, proxy_healthy: bool) -> Answer {
    // Names of objects need no escapes.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}",
        name.namespace, name.name
    );
    let weight = Some((WEIGHT, HeaderValue::from(ready)));
    Answer { header: weight, ..Answer::json(ready != 0 && proxy_healthy, body) }
}

/// Answers for one port.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) site: Site,
    pub(super) table: watch::Receiver<Table>,
    pub(super) proxy: Arc<Mutex<ProxyHealth>>,
    pub(super) clock: Clock,
    pub(super) pages: Option<Pages>,
    pub(super) probed: Probed,
}

impl Answerer {
    pub(super) fn answer(&self, question: Question<'_>) -> Answer {
        match &self.site {
            Site::Service(name) => {
                let healthy = self.health(|proxy, now| proxy.is_healthy(now));
                service(name, self.table.borrow().ready(name, question.family), healthy)
            }
            Site::Proxy => match question.path {
                "/healthz" => self.probe(Probe::Healthz),
                "/livez" => self.probe(Probe::Livez),
                _ => Answer::not_found(),
            },
            Site::Pages => self.pages.as_ref().map_or_else(Answer::not_found, |pages| pages(question)),
        }
    }

    fn probe(&self, probe: Probe) -> Answer {
        let (good, body) = self.health(|proxy, now| match probe {
            Probe::Healthz => proxy.healthz(now),
            Probe::Livez => proxy.livez(now),
        });
        let answer = Answer::json(good, body);
        (self.probed)(probe, answer.status.as_u16());
        answer
    }

    fn health<T>(&self, ask: impl FnOnce(&ProxyHealth, Moment) -> T) -> T {
        let now = (self.clock)();
        ask(&self.proxy.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    #[test]
    fn a_services_body_has_tabs_and_no_newline_at_its_end() {
        let answer = service(&ServiceName::new("shop", "web"), 2, true);
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, body));
        let status = |ready, healthy| service(&ServiceName::new("a", "b"), ready, healthy).status;
        assert_eq!([status(0, true), status(1, false), status(0, false)], [StatusCode::SERVICE_UNAVAILABLE; 3]);
    }
}
