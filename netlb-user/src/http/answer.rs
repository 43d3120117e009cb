//! What is answered: a status and some text.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

/// A response before it becomes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// One more header.
    pub header: Option<(HeaderName, HeaderValue)>,
    pub body: String,
}

impl Answer {
    /// JSON that says whether something is good.
    pub fn json(good: bool, body: String) -> Self {
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer { status, content_type: "application/json", header: None, body }
    }

    /// A line of text, or more.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Answer { status, content_type: "text/plain; charset=utf-8", header: None, body: body.into() }
    }

    /// There is no such path.
    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// The path may only be read.
    pub fn read_only() -> Self {
        let allow = Some((ALLOW, HeaderValue::from_static("GET, HEAD")));
        Answer { header: allow, ..Self::text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n") }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.extend(self.header);
        response
    }
}
