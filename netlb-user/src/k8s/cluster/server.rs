//! Questions to the API server, and answers as far as they can be believed.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use kube::Client;
use kube::client::Body;
use kube::core::Request as Ask;
use kube::core::params::PostParams;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::place::printable;
use super::access::{Access, AccessError, client};
use super::addresses::Addresses;
use super::resource::Resource;
use super::trouble::{Trouble, chain};

/// Of a list in bytes, at most; of what a server says besides.
const MOST_PAGE: usize = 64 << 20;
const MOST_WORDS: usize = 64 << 10;
/// A line of a watch in bytes, at most: objects have at most 3 MiB, as the API server takes them.
const MOST_LINE: usize = 16 << 20;
/// The client is made anew at most so often.
const RENEW: Duration = Duration::from_secs(2);

/// How long a server may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Patience {
    /// From the question to the first byte of the answer, and between two pieces of a list.
    pub(super) answer: Duration,
    /// Between two signs of life in a watch. A server that lives sends a bookmark a minute (up to 75 s); one that is silent for longer may
    /// have been stopped.
    pub(super) silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { answer: Duration::from_secs(30), silence: Duration::from_secs(120) }
    }
}

/// A question to the API server that was answered, or was not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked<'a> {
    /// Host and port, as in the URL.
    pub host: &'a str,
    /// Of HTTP: `GET`, `POST`.
    pub method: &'a str,
    /// HTTP's, if there was an answer.
    pub status: Option<u16>,
    /// Until the answer began, or it was clear that none comes.
    pub took: Duration,
}

/// Hears of each question to the API server.
pub type OnAsked = Arc<dyn Fn(&Asked<'_>) + Send + Sync>;

/// An API server, and the client for it.
pub(super) struct Server {
    on_asked: OnAsked,
    patience: Patience,
    access: Access,
    addresses: Arc<Addresses>,
    client: RefCell<Client>,
    renewed: Cell<Instant>,
    url: String,
    host: String,
    /// It did not answer when it was asked last.
    away: Cell<bool>,
    back: Notify,
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) api_version: String,
    #[serde(default)]
    pub(super) kind: String,
    pub(super) metadata: PageMeta,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) r#continue: String,
}

/// What the server says instead of an answer (`metav1.Status`).
#[derive(Deserialize)]
pub(super) struct Words {
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    pub(super) code: u16,
}

impl Words {
    pub(super) fn text(&self) -> String {
        let words = if self.message.is_empty() { &self.reason } else { &self.message };
        printable_line(words)
    }
}

impl Server {
    /// # Errors
    /// If the configuration cannot be used.
    pub(super) async fn new(
        access: Access,
        addresses: Arc<Addresses>,
        patience: Patience,
        on_asked: OnAsked,
    ) -> Result<Self, AccessError> {
        let config = access.config().await?;
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        Ok(Server {
            on_asked,
            host,
            patience,
            client: RefCell::new(client(&config, Arc::clone(&addresses))?),
            renewed: Cell::new(Instant::now()),
            url: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            access,
            addresses,
            away: Cell::new(false),
            back: Notify::new(),
        })
    }

    /// Where it is asked.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A hint beside a failure to reach it.
    pub(super) fn hint(&self) -> &'static str {
        if self.access.is_by_service() {
            "; where nobody serves the API server's Service yet, name a real address with --api-server URL"
        } else {
            ""
        }
    }

    /// Waits until it is time, or until the server answers somebody else after it was away.
    pub(super) async fn rest(&self, wait: Duration) {
        // Either way it is tried again.
        drop(timeout(wait, self.back.notified()).await);
    }

    /// Reads the credentials anew, as files change and servers move.
    async fn renew(&self) {
        if self.renewed.get().elapsed() < RENEW {
            return;
        }
        self.renewed.set(Instant::now());
        let made = match self.access.config().await {
            Ok(config) => client(&config, Arc::clone(&self.addresses)),
            Err(error) => Err(error),
        };
        match made {
            Ok(client) => drop(self.client.replace(client)),
            Err(error) => tracing::warn!("{error}; what was read before is used"),
        }
    }

    /// A page of a list, as bytes for [`Page`].
    ///
    /// # Errors
    /// See [`Trouble`].
    pub(super) async fn page(&self, of: &Resource, limit: u32, token: Option<String>) -> Result<Vec<u8>, Trouble> {
        let body = self.ask(Ask::new(of.path).list(&of.list(limit, token))).await?;
        whole(body, MOST_PAGE, self.patience.answer).await
    }

    /// A watch from a version on, ended by the server after so many seconds.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub(super) async fn watch(&self, of: &Resource, version: &str, seconds: u32) -> Result<Lines, Trouble> {
        let body = self.ask(Ask::new(of.path).watch(&of.watch(seconds), version)).await?;
        Ok(Lines { body, text: Vec::new(), silence: self.patience.silence })
    }

    /// Makes an object.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub(super) async fn create(&self, path: &str, object: &Value) -> Result<(), Trouble> {
        let ask = Ask::new(path).create(&PostParams::default(), object.to_string().into_bytes());
        whole(self.ask(ask).await?, MOST_LINE, self.patience.answer).await.map(drop)
    }

    /// The uid of the object at a path.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub(super) async fn uid(&self, path: &str) -> Result<String, Trouble> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::core::request::Error::BuildRequest);
        let body = whole(self.ask(request).await?, MOST_LINE, self.patience.answer).await?;
        let object: Value = serde_json::from_slice(&body).map_err(|error| Trouble::Nonsense(error.to_string()))?;
        Ok(object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    async fn ask(&self, request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<Body, Trouble> {
        let request = request.map_err(|error| Trouble::Nonsense(format!("no question: {error}")))?;
        let client = self.client.borrow().clone();
        let (method, begun) = (request.method().clone(), Instant::now());
        let answer = timeout(self.patience.answer, client.send(request.map(Body::from))).await;
        let status = answer.as_ref().ok().and_then(|answer| Some(answer.as_ref().ok()?.status().as_u16()));
        (self.on_asked)(&Asked { host: &self.host, method: method.as_str(), status, took: begun.elapsed() });
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(kube::Error::Service(error))) => return Err(self.lost(chain(&*error)).await),
            Ok(Err(error)) => return Err(self.lost(chain(&error)).await),
            Err(_) => return Err(self.lost(nothing_within(self.patience.answer)).await),
        };
        if self.away.replace(false) {
            self.back.notify_waiters();
        }
        let status = answer.status();
        let json =
            answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        if matches!(status, StatusCode::OK | StatusCode::CREATED) && json {
            return Ok(answer.into_body());
        }
        let kind = answer.headers().get(CONTENT_TYPE).map(|kind| printable(&String::from_utf8_lossy(kind.as_bytes())));
        let body = whole(answer.into_body(), MOST_WORDS, self.patience.answer).await;
        if status == StatusCode::OK {
            let kind = kind.unwrap_or_else(|| "nothing".to_owned());
            return Err(Trouble::Nonsense(format!("it is of type {kind}, not application/json")));
        }
        if status == StatusCode::GONE {
            return Err(Trouble::Gone);
        }
        if status == StatusCode::UNAUTHORIZED {
            self.renew().await;
        }
        let words = body.ok().and_then(|body| serde_json::from_slice::<Words>(&body).ok());
        let words = words.map(|words| words.text()).unwrap_or_default();
        let words = if words.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { words };
        Err(Trouble::Refused(status.as_u16(), words))
    }

    async fn lost(&self, why: String) -> Trouble {
        self.away.set(true);
        self.renew().await;
        Trouble::Away(why)
    }
}

/// A body as a whole.
async fn whole(mut body: Body, most: usize, patience: Duration) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    while let Some(piece) = piece(&mut body, patience).await? {
        if bytes.len() + piece.len() > most {
            return Err(Trouble::TooLarge);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn piece(body: &mut Body, patience: Duration) -> Result<Option<hyper::body::Bytes>, Trouble> {
    loop {
        return match timeout(patience, body.frame()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(Some(data)),
                // Trailers say nothing.
                Err(_) => continue,
            },
            Ok(Some(Err(error))) => Err(Trouble::Away(chain(&error))),
            Err(_) => Err(Trouble::Away(nothing_within(patience))),
        };
    }
}

fn nothing_within(time: Duration) -> String {
    format!("nothing came within {} s", time.as_secs_f32())
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Body,
    text: Vec<u8>,
    silence: Duration,
}

impl Lines {
    /// The whole lines that came at once, at least one; `None` at the end.
    ///
    /// # Errors
    /// If it breaks off, is silent for too long, or a line is too long.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        loop {
            let Some(piece) = piece(&mut self.body, self.silence).await? else {
                return if self.text.iter().all(u8::is_ascii_whitespace) {
                    Ok(None)
                } else {
                    Err(Trouble::Away("the watch ended in the middle of an object".to_owned()))
                };
            };
            let known = self.text.len();
            self.text.extend_from_slice(&piece);
            if let Some(last) = piece.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.text.split_off(known + last + 1);
                return Ok(Some(std::mem::replace(&mut self.text, rest)));
            }
            if self.text.len() > MOST_LINE {
                return Err(Trouble::Nonsense(format!("an object of more than {MOST_LINE} bytes")));
            }
        }
    }
}

/// A text of a server in one line of bounded length.
fn printable_line(text: &str) -> String {
    const MOST: usize = 300;
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}
