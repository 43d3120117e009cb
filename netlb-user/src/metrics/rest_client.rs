//! client-go's metrics of questions to the API server (`k8s.io/component-base/metrics/prometheus/restclient`), which dashboards of kube-proxy show.

use prometheus::{HistogramVec, IntCounterVec, Result};

use super::make::Maker;
use crate::k8s::cluster::Asked;

/// As client-go has them, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// The `code` of a question without an answer.
const NO_ANSWER: &str = "<error>";

#[derive(Clone)]
pub(super) struct RestClient {
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl RestClient {
    pub(super) fn new(maker: &Maker<'_>) -> Result<Self> {
        Ok(RestClient {
            requests: maker.counters(
                "rest_client_requests_total",
                "Questions to the API server, by HTTP status (<error>: no answer), method and host",
                ["code", "method", "host"],
                [],
            )?,
            duration: maker.histograms(
                "rest_client_request_duration_seconds",
                "From a question to the API server to the begin of its answer, by HTTP method and host",
                BUCKETS.to_vec(),
                ["verb", "host"],
                [],
            )?,
        })
    }

    pub(super) fn asked(&self, asked: &Asked<'_>) {
        let code = asked.status.map_or_else(|| NO_ANSWER.to_owned(), |status| status.to_string());
        self.requests.with_label_values(&[code.as_str(), asked.method, asked.host]).inc();
        self.duration.with_label_values(&[asked.method, asked.host]).observe(asked.took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Metrics;
    use super::*;

    #[test]
    fn answers_and_their_absence_are_counted_by_host() {
        let metrics = Metrics::new(None).unwrap();
        let asked = metrics.asked();
        for status in [Some(200), Some(200), Some(410), None] {
            asked(&Asked { host: "10.0.0.1:6443", method: "GET", status, took: Duration::from_millis(20) });
        }
        let text = metrics.text().unwrap();
        for line in [
            r#"rest_client_requests_total{code="200",host="10.0.0.1:6443",method="GET"} 2"#,
            r#"rest_client_requests_total{code="410",host="10.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_requests_total{code="<error>",host="10.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.0.0.1:6443",verb="GET",le="0.005"} 0"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.0.0.1:6443",verb="GET",le="0.025"} 4"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }
}
