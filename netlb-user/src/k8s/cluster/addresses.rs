//! Where the API server answers when its own Service's address does not: the endpoints of `default/kubernetes`, remembered over restarts.
//!
//! In a cluster an agent is told to ask at that Service's cluster IP, which works only while somebody serves it: another proxy, or the maps of
//! an agent before this one. The endpoints work always. The certificate is checked against the name that was asked for, so a wrong address
//! cannot be mistaken for the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::model::{Change, Kind, Object, ObjectKey, Protocol, SliceSpec};
use crate::runtime::atomic_file;

/// The Service that stands for the API servers.
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";
/// Its port.
const PORT: &str = "https";

/// A connection to one address may take so long.
const CONNECT: Duration = Duration::from_secs(5);
/// A silent connection is asked for a sign of life after this, so often and so many times.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent must be acknowledged within this time.
const UNACKNOWLEDGED: Duration = Duration::from_secs(25);

/// The addresses known.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Where they are kept; `None`: others than the configured address are never tried.
    path: Option<PathBuf>,
    known: Mutex<BTreeSet<SocketAddr>>,
}

impl Addresses {
    /// With what an agent before this one kept in `path`.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let read = |path: &PathBuf| -> Option<BTreeSet<SocketAddr>> {
            serde_json::from_slice(&std::fs::read(path).ok()?).ok()
        };
        let known = path.as_ref().and_then(read).unwrap_or_default();
        Addresses { path, known: Mutex::new(known) }
    }

    fn known(&self) -> BTreeSet<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, now: BTreeSet<SocketAddr>) {
        let Some(path) = &self.path else { return };
        // No address is never news: somebody answered.
        if now.is_empty() || now == self.known() {
            return;
        }
        let text = serde_json::to_vec(&now).unwrap_or_default();
        if let Err(error) = atomic_file::write(path, &text) {
            tracing::warn!("{}: {error}; an agent after this one will not know the API servers", path.display());
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// The slices of the API servers' Service, as they come by.
#[derive(Debug, Default)]
pub(super) struct Endpoints(BTreeMap<ObjectKey, BTreeSet<SocketAddr>>);

impl Endpoints {
    /// Looks at what changed.
    pub(super) fn see(&mut self, changes: &[Change], addresses: &Addresses) {
        let before = self.0.len();
        let mut news = false;
        for change in changes {
            match change {
                Change::Apply(Object::EndpointSlice(slice)) if is_ours(slice) => {
                    self.0.insert(Object::EndpointSlice(slice.clone()).key(), sockets(slice));
                    news = true;
                }
                Change::Delete(key) if key.kind == Kind::EndpointSlice => drop(self.0.remove(key)),
                Change::Apply(_) | Change::Delete(_) | Change::Incomplete | Change::Synced => {}
            }
        }
        if news || before != self.0.len() {
            addresses.learn(self.0.values().flatten().copied().collect());
        }
    }
}

fn is_ours(slice: &SliceSpec) -> bool {
    slice.service.as_ref().is_some_and(|service| *service.namespace == *NAMESPACE && *service.name == *SERVICE)
}

fn sockets(slice: &SliceSpec) -> BTreeSet<SocketAddr> {
    let ports = slice.ports.iter().filter(|port| *port.name.0 == *PORT && port.protocol == Protocol::Tcp);
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
    ports.flat_map(|port| ready.clone().map(|endpoint| SocketAddr::new(endpoint.addr, port.port))).collect()
}

/// Connects to the host and port of `uri`, else to an address known.
///
/// # Errors
/// What each address said.
pub(super) async fn connect(uri: Uri, addresses: Arc<Addresses>) -> io::Result<TokioIo<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let mut said = Vec::new();
    let mut candidates: Vec<SocketAddr> = match lookup_host((host, port)).await {
        Ok(found) => found.collect(),
        Err(error) => {
            said.push(format!("{host}: {error}"));
            Vec::new()
        }
    };
    for known in addresses.known() {
        if !candidates.contains(&known) {
            candidates.push(known);
        }
    }
    for at in candidates {
        match timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => {
                prepare(&stream)?;
                return Ok(TokioIo::new(stream));
            }
            Ok(Err(error)) => said.push(format!("{at}: {error}")),
            Err(_) => said.push(format!("{at}: not connected within {} s", CONNECT.as_secs())),
        }
    }
    Err(io::Error::other(said.join("; ")))
}

/// A watch may be silent for long: the kernel finds out whether the other end is still there.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::k8s::convert;

    fn slice(name: &str, addresses: &[&str], ready: bool) -> Change {
        let endpoints: Vec<_> =
            addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": ready}})).collect();
        let family = if addresses.iter().any(|a| a.contains(':')) { "IPv6" } else { "IPv4" };
        let value = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "ports": [{"name": "https", "port": 6443}, {"name": "other", "port": 1}],
            "endpoints": endpoints,
        });
        let mut objects = convert(&value, None, "").objects;
        Change::Apply(objects.remove(0))
    }

    fn known(addresses: &Addresses) -> Vec<String> {
        addresses.known().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn api_servers_are_remembered_over_restarts() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = Some(dir.path().join("api-servers.json"));
        let addresses = Addresses::new(path.clone());
        let mut endpoints = Endpoints::default();
        endpoints.see(&[slice("kubernetes", &["192.0.2.1", "192.0.2.2"], true)], &addresses);
        endpoints.see(&[slice("six", &["2001:db8::1"], true), slice("down", &["192.0.2.9"], false)], &addresses);
        let all = ["192.0.2.1:6443", "192.0.2.2:6443", "[2001:db8::1]:6443"];
        assert_eq!(known(&addresses), all);
        assert_eq!(known(&Addresses::new(path.clone())), all);
        let Change::Apply(gone) = slice("six", &["2001:db8::1"], true) else { panic!("an apply") };
        endpoints.see(&[Change::Delete(gone.key())], &addresses);
        assert_eq!(known(&addresses), all[..2]);
        // That nobody is left is not believed.
        endpoints.see(&[slice("kubernetes", &[], true)], &addresses);
        assert_eq!(known(&Addresses::new(path)), all[..2]);
        let unused = Addresses::new(None);
        endpoints.see(&[slice("kubernetes", &["192.0.2.1"], true)], &unused);
        assert_eq!(known(&unused), [""; 0]);
    }
}
