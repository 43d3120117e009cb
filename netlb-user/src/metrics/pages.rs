//! The pages on the port of `/metrics`, as kube-proxy has them there (`serveMetrics` of its `server.go`).

use hyper::{Method, StatusCode};

use super::{CONTENT_TYPE, Metrics};
use crate::http::{Answer, Question};

/// What they say.
#[derive(Clone)]
pub struct Pages {
    pub metrics: Metrics,
    /// Of `/proxyMode`.
    pub proxy_mode: String,
    /// Of `/configz`: JSON.
    pub configz: String,
}

impl Pages {
    /// Answers a question.
    pub fn answer(&self, question: Question<'_>) -> Answer {
        let page: fn(&Self) -> Answer = match question.path {
            "/metrics" => Self::metrics,
            "/healthz" => |_| Answer::text(StatusCode::OK, "ok"),
            "/proxyMode" => |pages| Answer::text(StatusCode::OK, pages.proxy_mode.clone()),
            "/configz" => |pages| Answer::json(true, pages.configz.clone()),
            _ => return Answer::not_found(),
        };
        if matches!(*question.method, Method::GET | Method::HEAD) { page(self) } else { Answer::read_only() }
    }

    fn metrics(&self) -> Answer {
        match self.metrics.text() {
            Ok(text) => Answer { content_type: CONTENT_TYPE, ..Answer::text(StatusCode::OK, text) },
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    #[test]
    fn pages_may_be_read_and_nothing_else() {
        let metrics = Metrics::new(None).expect("good names");
        let pages = Pages { metrics, proxy_mode: "netlb".to_owned(), configz: "{}".to_owned() };
        let ask = |method: Method, path| pages.answer(Question { method: &method, path, family: Family::V4 });
        for (path, body) in [("/healthz", "ok"), ("/proxyMode", "netlb"), ("/configz", "{}")] {
            for method in [Method::GET, Method::HEAD] {
                let answer = ask(method, path);
                assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, body));
            }
            let refused = ask(Method::POST, path);
            assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
            assert!(refused.header.is_some_and(|(name, value)| name == "allow" && value == "GET, HEAD"));
        }
        let scraped = ask(Method::GET, "/metrics");
        assert_eq!((scraped.status, scraped.content_type), (StatusCode::OK, CONTENT_TYPE));
        assert!(scraped.body.contains("\nnetlb_build_info{abi="), "{}", scraped.body);
        for path in ["/", "/metrics/", "/debug/pprof/"] {
            assert_eq!(ask(Method::POST, path).status, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
