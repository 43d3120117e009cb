//! The answers, byte for byte.

use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use tokio::sync::watch;

use super::proxy::{Clock, ProxyHealth};
use super::server::Site;
use super::table::Table;
use crate::model::{Family, ServiceName};

/// How much of the traffic a load balancer that weighs its nodes shall send here.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A response before it becomes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// `X-Load-Balancing-Endpoint-Weight`.
    pub weight: Option<usize>,
    pub body: String,
}

impl Answer {
    fn json(good: bool, body: String) -> Self {
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer { status, content_type: "application/json", weight: None, body }
    }

    /// A Service's health check port: every path and method is answered alike.
    pub fn service(name: &ServiceName, ready: usize, proxy_healthy: bool) -> Self {
        // Names of objects need no escapes.
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}",
            name.namespace, name.name
        );
        Answer { weight: Some(ready), ..Answer::json(ready != 0 && proxy_healthy, body) }
    }

    /// The proxy's own port has two paths.
    fn not_found() -> Self {
        let body = "404 page not found\n".to_owned();
        Answer { status: StatusCode::NOT_FOUND, content_type: "text/plain; charset=utf-8", weight: None, body }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(weight) = self.weight {
            headers.insert(WEIGHT, HeaderValue::from(weight));
        }
        response
    }
}

/// Answers for one port.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) site: Site,
    pub(super) table: watch::Receiver<Table>,
    pub(super) proxy: Arc<Mutex<ProxyHealth>>,
    pub(super) clock: Clock,
}

impl Answerer {
    /// `family`: by which the question came.
    pub(super) fn answer<B>(&self, request: &Request<B>, family: Family) -> Answer {
        let now = (self.clock)();
        let proxy = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        match (&self.site, request.uri().path()) {
            (Site::Service(name), _) => {
                let healthy = proxy.is_healthy(now);
                drop(proxy);
                Answer::service(name, self.table.borrow().ready(name, family), healthy)
            }
            (Site::Proxy, "/healthz") => {
                let (good, body) = proxy.healthz(now);
                Answer::json(good, body)
            }
            (Site::Proxy, "/livez") => {
                let (good, body) = proxy.livez(now);
                Answer::json(good, body)
            }
            (Site::Proxy, _) => Answer::not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_body_has_tabs_and_no_newline_at_its_end() {
        let answer = Answer::service(&ServiceName::new("shop", "web"), 2, true);
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, body));
        let status = |ready, healthy| Answer::service(&ServiceName::new("a", "b"), ready, healthy).status;
        assert_eq!([status(0, true), status(1, false), status(0, false)], [StatusCode::SERVICE_UNAVAILABLE; 3]);
    }
}
