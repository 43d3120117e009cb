//! The API server as a source: lists and watches of the kinds netlb reads, from a thread of its own.
//!
//! Each object is converted when it comes and told on; nothing of it is kept here but its name. A list is believed as a whole or not at all, and
//! what it does not name is gone. Nothing is told before every kind was listed once. What goes wrong (nobody answers, an answer makes no
//! sense, a right is missing) is said and tried again; what was told before holds.

mod access;
mod addresses;
mod backoff;
mod book;
mod events;
mod follow;
mod resource;
mod server;
mod trouble;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use access::{Access, AccessError};
pub use server::{Asked, OnAsked};

use super::news::SourceNews;
use crate::events::Event;
use crate::model::NodeName;
use addresses::Addresses;
use book::Book;
use follow::Follower;
use server::{Patience, Server};

/// Follows an API server, until dropped.
pub struct Cluster {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// An API server cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the thread that follows the API server cannot be started: {0}")]
    Thread(#[from] io::Error),
}

impl Cluster {
    /// Begins to follow, from a thread of its own in which `tell` is called. `here`: this node; `keep`: the file for the API servers' addresses;
    /// `events`: what is to be written there; `on_asked` hears of each question.
    ///
    /// # Errors
    /// If the credentials cannot be read. That nobody answers is no error, and is told.
    pub fn follow(
        access: Access,
        here: NodeName,
        keep: &Path,
        events: Receiver<Event>,
        on_asked: OnAsked,
        tell: impl FnMut(SourceNews) + Send + 'static,
    ) -> Result<Self, ClusterError> {
        Self::follow_with(Patience::default(), access, here, keep, events, on_asked, tell)
    }

    fn follow_with(
        patience: Patience,
        access: Access,
        here: NodeName,
        keep: &Path,
        events: Receiver<Event>,
        on_asked: OnAsked,
        tell: impl FnMut(SourceNews) + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let (stop, stopped) = oneshot::channel();
        let (started, start) = channel();
        let keep = access.is_by_service().then(|| keep.to_owned());
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            let addresses = Arc::new(Addresses::new(keep));
            let server = match runtime.block_on(Server::new(access, Arc::clone(&addresses), patience, on_asked)) {
                Ok(server) => server,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            // Who asked waits for it.
            drop(started.send(Ok(())));
            let book = Book::new(resource::all(&here).iter().map(|resource| resource.kind), addresses, tell);
            follow_all(&runtime, server, &here, book, events, stopped);
            // A name that is still looked up is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("api-server".to_owned()).spawn(run)?;
        match start.recv() {
            Ok(Ok(())) => Ok(Cluster { stop: Some(stop), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("it panicked").into()),
        }
    }
}

fn follow_all(
    runtime: &Runtime,
    server: Server,
    here: &NodeName,
    book: Book,
    events: Receiver<Event>,
    stopped: oneshot::Receiver<()>,
) {
    tracing::info!("following the API server {}", server.url());
    let server = Rc::new(server);
    let book = Rc::new(RefCell::new(book));
    let tasks = LocalSet::new();
    tasks.spawn_local(events::write(Rc::clone(&server), events, here.clone()));
    for resource in resource::all(here) {
        tasks.spawn_local(Follower::new(resource, Rc::clone(&server), Rc::clone(&book)).run());
    }
    // Told to stop, or nobody is left who could tell: the same.
    drop(tasks.block_on(runtime, stopped));
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A thread that has ended needs no telling.
            stop.send(()).ok();
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that follows the API server has panicked");
        }
    }
}
