//! One kind, from the first list on: list, watch, and what to do when either fails.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::book::{Book, Seen};
use super::resource::Resource;
use super::server::{Page, Server, Words};
use super::trouble::Trouble;
use crate::k8s::convert::{Named, convert_named};
use crate::runtime::random;

/// Objects of a page.
const PAGE: u32 = 500;
/// Pages of a list, at most: a list without an end is none.
const MOST_PAGES: usize = 20_000;
/// A watch is ended by the server after so many seconds, and begun anew; not all nodes' at once.
const WATCH: u32 = 230;
const WATCH_SPREAD: u32 = 60;
/// What a cluster need not have is asked for so often when it has not.
const SELDOM: Duration = Duration::from_secs(60);
/// A watch that lasted so long has shown that it works.
const PROVEN: Duration = Duration::from_secs(5);

/// A line of a watch.
#[derive(Deserialize)]
struct Line<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Follows one kind until it is dropped.
pub(super) struct Follower {
    pub(super) resource: Resource,
    pub(super) server: Rc<Server>,
    pub(super) book: Rc<RefCell<Book>>,
    pub(super) backoff: Backoff,
    /// Objects of a page: fewer once they proved to be large.
    pub(super) limit: u32,
}

impl Follower {
    pub(super) fn new(resource: Resource, server: Rc<Server>, book: Rc<RefCell<Book>>) -> Self {
        Follower { resource, server, book, backoff: Backoff::new(), limit: PAGE }
    }

    pub(super) async fn run(mut self) {
        // The version up to which all is known; none: the list comes first.
        let mut version: Option<String> = None;
        loop {
            let result = match &mut version {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(version) => self.watch(version).await,
            };
            let Err(trouble) = result else { continue };
            tracing::debug!(kind = self.resource.kind.name(), "{trouble}");
            match &trouble {
                Trouble::TooLarge if self.limit > 1 => {
                    self.limit = (self.limit / 4).max(1);
                    continue;
                }
                // The history is kept, and the watch goes on where it ended. A server that has just started may not know our rights yet.
                Trouble::Away(_) | Trouble::Short | Trouble::Refused(401 | 403 | 429 | 500 | 502 | 503, _) => {}
                Trouble::Gone | Trouble::Refused(..) | Trouble::Nonsense(_) | Trouble::TooLarge => version = None,
            }
            if trouble != Trouble::Gone {
                self.tell(&trouble);
            }
            let missing = !self.resource.needed && matches!(trouble, Trouble::Refused(404, _));
            self.server.rest(if missing { SELDOM } else { self.backoff.next() }).await;
        }
    }

    /// What cannot be had, in the status.
    fn tell(&self, trouble: &Trouble) {
        let (server, what) = (self.server.url(), self.resource.plural());
        let mut book = self.book.borrow_mut();
        let kind = self.resource.kind;
        let reason = match trouble {
            Trouble::Refused(404, _) if !self.resource.needed => {
                // A cluster that does not have it is no fault.
                book.follows(kind);
                return book.does_without(kind);
            }
            Trouble::Refused(401, words) => {
                format!("API server {server} does not know us: it says 401: {words}; renew the credentials")
            }
            Trouble::Refused(403, words) => {
                format!("API server {server}: {what} may not be read: {words}; grant get, list and watch")
            }
            Trouble::Away(why) => format!("API server {server} does not answer: {why}{}", self.server.hint()),
            Trouble::Gone | Trouble::Refused(..) | Trouble::Nonsense(_) | Trouble::TooLarge | Trouble::Short => {
                format!("API server {server}: {what} cannot be followed: {trouble}")
            }
        };
        book.failed(kind, reason);
        if matches!(trouble, Trouble::Refused(403, _)) && !self.resource.needed {
            book.does_without(kind);
        }
    }

    /// Lists all objects, page by page, and returns the version of that state. Nothing is told before the last page.
    async fn list(&mut self) -> Result<String, Trouble> {
        let (mut all, mut token) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let bytes = self.server.page(&self.resource, self.limit, token.take()).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes).map_err(|error| nonsense(&error))?;
            let want = format!("{}List", self.resource.kind.name());
            if page.kind != want || page.api_version != self.resource.api_version {
                return Err(Trouble::Nonsense(format!("a {} {} is no {want}", page.api_version, page.kind)));
            }
            for item in page.items.unwrap_or_default() {
                all.push(self.convert(item)?.0);
            }
            if page.metadata.r#continue.is_empty() {
                let version = page.metadata.resource_version;
                if version.is_empty() {
                    return Err(Trouble::Nonsense("a list without a resourceVersion".to_owned()));
                }
                tracing::debug!(kind = self.resource.kind.name(), objects = all.len(), %version, "listed");
                self.book.borrow_mut().listed(self.resource.kind, all);
                return Ok(version);
            }
            token = Some(page.metadata.r#continue);
        }
        Err(Trouble::Nonsense("a list without an end".to_owned()))
    }

    /// Watches from `version` on, and moves it with what was seen, until the server ends it.
    async fn watch(&mut self, version: &mut String) -> Result<(), Trouble> {
        let seconds = WATCH + u32::try_from(random::number() % u64::from(WATCH_SPREAD)).unwrap_or_default();
        let began = Instant::now();
        let mut lines = self.server.watch(&self.resource, version, seconds).await?;
        self.book.borrow_mut().follows(self.resource.kind);
        let mut heard = false;
        loop {
            let text = match lines.next().await {
                Ok(Some(text)) => text,
                Ok(None) => break,
                // The next question shows whether the server is away, or only this connection.
                Err(Trouble::Away(why)) if heard || began.elapsed() >= PROVEN => {
                    tracing::debug!(kind = self.resource.kind.name(), "a watch broke off: {why}");
                    break;
                }
                Err(trouble) => return Err(trouble),
            };
            let mut news = Vec::new();
            let read = self.read(&text, version, &mut news);
            // What came before nonsense holds.
            self.book.borrow_mut().saw(news);
            read?;
            heard = true;
            self.backoff.reset();
        }
        if !heard && began.elapsed() < PROVEN {
            return Err(Trouble::Short);
        }
        self.backoff.reset();
        Ok(())
    }

    /// Reads lines; what they say goes into `news`, and `version` on to the last of them.
    fn read(&self, text: &[u8], version: &mut String, news: &mut Vec<Seen>) -> Result<(), Trouble> {
        for line in serde_json::Deserializer::from_slice(text).into_iter::<Line<'_>>() {
            let line = line.map_err(|error| nonsense(&error))?;
            let at = match line.r#type.as_str() {
                "ADDED" | "MODIFIED" => {
                    let (named, at) = self.convert(line.object)?;
                    news.push(Seen::Is(Box::new(named)));
                    at
                }
                "DELETED" => {
                    let (named, at) = self.convert(line.object)?;
                    news.push(Seen::Gone(named.key));
                    at
                }
                "BOOKMARK" => version_of(&value(line.object)?),
                "ERROR" => {
                    let words: Words = serde_json::from_str(line.object.get()).map_err(|error| nonsense(&error))?;
                    return Err(if words.code == 410 {
                        Trouble::Gone
                    } else {
                        Trouble::Refused(words.code, words.text())
                    });
                }
                other => return Err(Trouble::Nonsense(format!("a watch event of type {other:?}"))),
            };
            *version = at.ok_or_else(|| Trouble::Nonsense("an event without a resourceVersion".to_owned()))?;
        }
        Ok(())
    }

    /// An object and its version.
    fn convert(&self, text: &RawValue) -> Result<(Named, Option<String>), Trouble> {
        let value = value(text)?;
        let named = convert_named(&value, self.resource.kind).map_err(|problems| {
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Trouble::Nonsense(said.join("; "))
        })?;
        Ok((named, version_of(&value)))
    }
}

fn value(text: &RawValue) -> Result<Value, Trouble> {
    serde_json::from_str(text.get()).map_err(|error| nonsense(&error))
}

fn version_of(object: &Value) -> Option<String> {
    let version = object.get("metadata")?.get("resourceVersion")?.as_str()?;
    (!version.is_empty()).then(|| version.to_owned())
}

fn nonsense(error: &serde_json::Error) -> Trouble {
    Trouble::Nonsense(format!("no JSON as it should be: {error}"))
}
