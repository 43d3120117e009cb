//! A small API server for tests: lists by pages, watches with history, label selectors, and any fault on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    List,
    Watch,
    /// POST.
    Make,
}

/// An answer that is not as it should be.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// An HTTP status with a `Status` object.
    Status(u16, &'static str),
    /// This body of this type, with status 200.
    Body(&'static str, String),
    /// The right answer, cut after so many bytes.
    Cut(usize),
    /// The right answer, byte by byte with a breath between pieces of this size.
    Slow(usize),
    /// No answer at all, until the connection is closed.
    Silence,
}

#[derive(Default)]
struct State {
    /// By path and name.
    objects: BTreeMap<(String, String), Value>,
    /// Path, object as it is, and as it was before.
    history: Vec<(u64, String, Option<Value>, Option<Value>)>,
    version: u64,
    compacted: u64,
    faults: VecDeque<(Verb, &'static str, Fault)>,
    /// `LIST /api/v1/services limit=500`.
    asked: Vec<String>,
    /// Path and body of what was to be made.
    made: Vec<(String, Value)>,
    /// Grows when all watches shall end.
    cut: u64,
    ended: bool,
}

/// A server on a port of the loopback.
pub(super) struct Fake {
    pub(super) at: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(super) const NODES: &str = "/api/v1/nodes";
pub(super) const PODS: &str = "/api/v1/pods";
pub(super) const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// A breath of a slow server.
const BREATH: Duration = Duration::from_millis(5);

impl Fake {
    pub(super) fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// As one that was there before.
    pub(super) fn start_at(at: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).expect("a port");
        let at = listener.local_addr().expect("an address");
        let shared = Arc::new((Mutex::new(State { version: 100, ..State::default() }), Condvar::new()));
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&of_thread);
                if lock(&shared.0).ended {
                    return;
                }
                let stream = stream.expect("a connection");
                // A client that goes away is no failure of a test.
                thread::spawn(move || drop(converse(&stream, &shared)));
            }
        });
        Fake { at, shared }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.0)
    }

    /// Makes or changes an object; returns its version.
    pub(super) fn put(&self, path: &str, mut object: Value) -> u64 {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let before = state.objects.insert((path.to_owned(), name), object.clone());
        state.history.push((version, path.to_owned(), Some(object), before));
        self.shared.1.notify_all();
        version
    }

    pub(super) fn delete(&self, path: &str, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let before = state.objects.remove(&(path.to_owned(), name.to_owned()));
        state.history.push((version, path.to_owned(), None, before));
        self.shared.1.notify_all();
    }

    /// The next question of this sort is answered with a fault.
    pub(super) fn fault(&self, verb: Verb, path: &'static str, fault: Fault) {
        self.state().faults.push_back((verb, path, fault));
    }

    /// Forgets its history.
    pub(super) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.history.clear();
    }

    /// From now on these objects are all there are of their sort; nobody is told, and the history is forgotten.
    pub(super) fn rewrite(&self, path: &str, objects: impl IntoIterator<Item = Value>) {
        let mut state = self.state();
        state.objects.retain(|(of, _), _| of != path);
        for mut object in objects {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
            state.objects.insert((path.to_owned(), name), object);
        }
        state.version += 1;
        state.compacted = state.version;
        state.history.clear();
    }

    /// Waits until so many objects were made.
    pub(super) fn until_made(&self, count: usize) {
        let state = self.state();
        drop(self.shared.1.wait_while(state, |state| state.made.len() < count));
    }

    /// Ends all watches.
    pub(super) fn cut(&self) {
        self.state().cut += 1;
        self.shared.1.notify_all();
    }

    /// What was made so far.
    pub(super) fn made(&self) -> Vec<(String, Value)> {
        self.state().made.clone()
    }

    /// What was asked so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.state().ended = true;
        self.shared.1.notify_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.at));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type Shared = (Mutex<State>, Condvar);

/// Questions of one connection, one after the other.
fn converse(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut header, mut length) = (String::from("-"), 0);
        while !header.trim().is_empty() {
            header.clear();
            reader.read_line(&mut header)?;
            if let Some((_, text)) = header.to_lowercase().split_once("content-length:") {
                length = text.trim().parse().expect("a length");
            }
        }
        let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
        if request.starts_with("POST ") {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let path = target.split('?').next().unwrap_or_default();
            make(stream, path, serde_json::from_slice(&body).expect("JSON"), shared)?;
            continue;
        }
        if let Some(name) = target.strip_prefix("/api/v1/namespaces/default/services/") {
            one(stream, SERVICES, name, shared)?;
            continue;
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), unescape(value)))
            .collect();
        if !answer(stream, path, &query, shared)? {
            return Ok(());
        }
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&hex, 16).expect("two digits"));
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Makes an object, or says no.
fn make(stream: &TcpStream, path: &str, object: Value, shared: &Shared) -> std::io::Result<()> {
    let mut state = lock(&shared.0);
    let fault = state.faults.iter().position(|(of, at, _)| *of == Verb::Make && *at == path);
    if let Some((_, _, Fault::Status(code, reason))) = fault.and_then(|at| state.faults.remove(at)) {
        let body = json!({"kind": "Status", "apiVersion": "v1", "message": reason, "code": code});
        return whole(stream, code, "application/json", &body.to_string());
    }
    let body = object.to_string();
    state.made.push((path.to_owned(), object));
    shared.1.notify_all();
    whole(stream, 201, "application/json", &body)
}

/// One object by its name.
fn one(stream: &TcpStream, path: &str, name: &str, shared: &Shared) -> std::io::Result<()> {
    let object = lock(&shared.0).objects.get(&(path.to_owned(), name.to_owned())).cloned();
    match object {
        Some(object) => whole(stream, 200, "application/json", &object.to_string()),
        None => whole(stream, 404, "application/json", &json!({"kind": "Status", "code": 404}).to_string()),
    }
}

/// False: the connection is at its end.
fn answer(stream: &TcpStream, path: &str, query: &BTreeMap<String, String>, shared: &Shared) -> std::io::Result<bool> {
    let verb = if query.contains_key("watch") { Verb::Watch } else { Verb::List };
    let fault = {
        let mut state = lock(&shared.0);
        let words = ["limit", "continue", "resourceVersion", "labelSelector", "fieldSelector", "allowWatchBookmarks"];
        let said: String = words.iter().filter_map(|key| Some(format!(" {key}={}", query.get(*key)?))).collect();
        state.asked.push(format!("{} {path}{said}", if verb == Verb::List { "LIST" } else { "WATCH" }));
        let at = state.faults.iter().position(|(of, at, _)| *of == verb && *at == path);
        at.and_then(|at| state.faults.remove(at)).map(|(_, _, fault)| fault)
    };
    match (fault, verb) {
        (Some(Fault::Status(code, reason)), _) => {
            let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code});
            whole(stream, code, "application/json", &body.to_string())?;
            Ok(true)
        }
        (Some(Fault::Body(kind, body)), _) => whole(stream, 200, kind, &body).map(|()| true),
        (Some(Fault::Silence), _) => {
            let state = lock(&shared.0);
            let cut = state.cut;
            drop(shared.1.wait_while(state, |state| !state.ended && state.cut == cut));
            Ok(false)
        }
        (fault, Verb::List) => {
            let body = list(path, query, shared);
            match fault {
                Some(Fault::Cut(at)) => {
                    head(stream, 200, "application/json", &format!("Content-Length: {}", body.len()))?;
                    let mut stream = stream;
                    stream.write_all(&body.as_bytes()[..at.min(body.len())])?;
                    stream.shutdown(std::net::Shutdown::Both)?;
                    Ok(false)
                }
                Some(Fault::Slow(size)) => {
                    head(stream, 200, "application/json", &format!("Content-Length: {}", body.len()))?;
                    let mut stream = stream;
                    for piece in body.as_bytes().chunks(size) {
                        stream.write_all(piece)?;
                        thread::sleep(BREATH);
                    }
                    Ok(true)
                }
                _ => {
                    let gone = query.get("continue").is_some_and(|token| expired(token, shared));
                    if gone {
                        let body = json!({"kind": "Status", "code": 410, "reason": "Expired"}).to_string();
                        return whole(stream, 410, "application/json", &body).map(|()| true);
                    }
                    whole(stream, 200, "application/json", &body).map(|()| true)
                }
            }
        }
        (fault, Verb::Watch | Verb::Make) => watch(stream, path, query, shared, fault).map(|()| false),
    }
}

fn head(mut stream: &TcpStream, code: u16, kind: &str, more: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {code} Said\r\nContent-Type: {kind}\r\n{more}\r\n\r\n")
}

fn whole(mut stream: &TcpStream, code: u16, kind: &str, body: &str) -> std::io::Result<()> {
    head(stream, code, kind, &format!("Content-Length: {}", body.len()))?;
    stream.write_all(body.as_bytes())
}

fn kind_of(path: &str) -> (&'static str, &'static str) {
    match path {
        SERVICES => ("v1", "ServiceList"),
        NODES => ("v1", "NodeList"),
        PODS => ("v1", "PodList"),
        SLICES => ("discovery.k8s.io/v1", "EndpointSliceList"),
        CIDRS => ("networking.k8s.io/v1", "ServiceCIDRList"),
        other => panic!("nobody asks for {other}"),
    }
}

/// Only `!key` terms.
fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some(selector) = query.get("labelSelector") else { return true };
    let labels = &object["metadata"]["labels"];
    selector.split(',').all(|term| labels.get(term.strip_prefix('!').expect("a term that excludes")).is_none())
}

/// A continue token is `version:offset`.
fn expired(token: &str, shared: &Shared) -> bool {
    let version: u64 = token.split(':').next().and_then(|v| v.parse().ok()).expect("a token of ours");
    version < lock(&shared.0).compacted
}

fn list(path: &str, query: &BTreeMap<String, String>, shared: &Shared) -> String {
    let state = lock(&shared.0);
    let all: Vec<&Value> =
        state.objects.iter().filter(|((at, _), o)| at == path && selected(o, query)).map(|(_, o)| o).collect();
    let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let offset: usize =
        query.get("continue").and_then(|t| t.split(':').nth(1)).and_then(|o| o.parse().ok()).unwrap_or(0);
    let page: Vec<&&Value> = all.iter().skip(offset).take(limit).collect();
    let mut metadata = json!({"resourceVersion": state.version.to_string()});
    if offset + page.len() < all.len() {
        metadata["continue"] = json!(format!("{}:{}", state.version, offset + page.len()));
    }
    let (api_version, kind) = kind_of(path);
    json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": page}).to_string()
}

fn watch(
    stream: &TcpStream,
    path: &str,
    query: &BTreeMap<String, String>,
    shared: &Shared,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let mut from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).expect("a version");
    head(stream, 200, "application/json", "Transfer-Encoding: chunked")?;
    let mut state = lock(&shared.0);
    let cut = state.cut;
    if from < state.compacted {
        let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
        chunk(stream, &json!({"type": "ERROR", "object": status}).to_string())?;
        return end(stream);
    }
    // So that a watch that is cut off has been one.
    let bookmark = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": from.to_string()}}});
    chunk(stream, &bookmark.to_string())?;
    loop {
        let news: Vec<_> = state.history.iter().filter(|(v, at, ..)| *v > from && at == path).cloned().collect();
        for (version, _, now, before) in news {
            from = version;
            let was = before.as_ref().filter(|object| selected(object, query));
            let is = now.as_ref().filter(|object| selected(object, query));
            let (kind, mut object) = match (was, is) {
                (None, None) => continue,
                (None, Some(object)) => ("ADDED", object.clone()),
                (Some(_), Some(object)) => ("MODIFIED", object.clone()),
                (Some(object), None) => ("DELETED", object.clone()),
            };
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let line = json!({"type": kind, "object": object}).to_string();
            match &fault {
                Some(Fault::Cut(at)) => {
                    let part = &line[..(*at).min(line.len())];
                    let mut stream = stream;
                    write!(stream, "{:x}\r\n{part}\r\n", part.len())?;
                    return stream.shutdown(std::net::Shutdown::Both);
                }
                Some(Fault::Slow(size)) => {
                    let mut stream = stream;
                    for piece in (line + "\n").as_bytes().chunks(*size) {
                        write!(stream, "{:x}\r\n", piece.len())?;
                        stream.write_all(piece)?;
                        stream.write_all(b"\r\n")?;
                        thread::sleep(BREATH);
                    }
                }
                _ => chunk(stream, &line)?,
            }
        }
        if state.ended || state.cut != cut {
            return end(stream);
        }
        state = shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn chunk(mut stream: &TcpStream, line: &str) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n{line}\n\r\n", line.len() + 1)
}

fn end(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"0\r\n\r\n")?;
    stream.shutdown(std::net::Shutdown::Both)
}
