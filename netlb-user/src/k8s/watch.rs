//! Tells when a folder (the source's, that of `--config`) may have changed: file notifications, joined while they come in quick succession, and a
//! look every second in case one was lost or the folder was replaced.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

/// Quiet this long ends a burst of notifications.
const QUIET: Duration = Duration::from_millis(3);

/// A burst is cut after this long: a folder that never rests is still read.
const BURST: Duration = Duration::from_millis(50);

/// How often the folder is looked at without a notification.
const LOOK: Duration = Duration::from_secs(1);

/// Watches a folder from a thread of its own, until dropped.
pub struct Watcher {
    stop: Option<Sender<Event>>,
    thread: Option<JoinHandle<()>>,
}

enum Event {
    Changed,
    Stop,
}

impl Watcher {
    /// Calls `changed` whenever the folder may have changed, from a thread of its own. It is not called for the state at the start: read the
    /// folder once after this returns.
    pub fn new(folder: &Path, changed: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let folder = folder.to_owned();
        let notify = sender.clone();
        let mut watch = Watch { seen: look(&folder), folder, notify, watcher: None, inode: None };
        watch.renew();
        let run = move || watch.run(&receiver, changed);
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(run)?;
        Ok(Watcher { stop: Some(sender), thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A thread that has ended needs no telling.
            drop(stop.send(Event::Stop));
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("a thread that watches a folder has panicked");
        }
    }
}

/// Name → what tells one state of an entry from another.
type Look = BTreeMap<OsString, (u64, u64, i64, i64)>;

struct Watch {
    folder: PathBuf,
    notify: Sender<Event>,
    watcher: Option<RecommendedWatcher>,
    /// Of the folder the watcher was made for.
    inode: Option<u64>,
    seen: Look,
}

impl Watch {
    fn run(&mut self, events: &Receiver<Event>, mut changed: impl FnMut()) {
        loop {
            match events.recv_timeout(LOOK) {
                Ok(Event::Changed) => {
                    if !self.burst(events) {
                        return;
                    }
                    self.seen = look(&self.folder);
                    changed();
                }
                Err(RecvTimeoutError::Timeout) => {
                    let now = look(&self.folder);
                    if std::mem::replace(&mut self.seen, now) != self.seen {
                        changed();
                    }
                }
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.renew();
        }
    }

    /// Waits until a burst is over. False: to stop.
    fn burst(&self, events: &Receiver<Event>) -> bool {
        let end = Instant::now() + BURST;
        loop {
            let left = end.saturating_duration_since(Instant::now()).min(QUIET);
            match events.recv_timeout(left) {
                Ok(Event::Changed) if !left.is_zero() => {}
                Ok(Event::Changed) | Err(RecvTimeoutError::Timeout) => return true,
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// A notification hangs on the folder's inode: a folder that was replaced needs another.
    fn renew(&mut self) {
        let inode = fs::metadata(&self.folder).ok().map(|meta| meta.ino());
        if inode == self.inode {
            return;
        }
        (self.watcher, self.inode) = (None, inode);
        if inode.is_none() {
            return;
        }
        match self.watch() {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                // What happened before it hung there was not told.
                drop(self.notify.send(Event::Changed));
            }
            Err(error) => {
                let folder = self.folder.display();
                tracing::warn!(%error, "no file notifications for the folder {folder}; it is looked at every second");
            }
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let notify = self.notify.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let relevant = match event {
                Ok(event) => !event.kind.is_access() || is_close_after_write(&event.kind),
                Err(_) => true,
            };
            if relevant {
                // Nobody listens any more once the watch has ended.
                drop(notify.send(Event::Changed));
            }
        })?;
        watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

fn is_close_after_write(kind: &notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    *kind == notify::EventKind::Access(AccessKind::Close(AccessMode::Write))
}

fn look(folder: &Path) -> Look {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let stamp = |entry: fs::DirEntry| {
        let meta = fs::metadata(entry.path()).ok()?;
        Some((entry.file_name(), (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())))
    };
    entries.filter_map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for any machine; a watcher that works answers at once.
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn changes_are_told_also_after_the_folder_was_replaced() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("source");
        fs::create_dir(&folder).unwrap();
        let (sender, told) = channel();
        let (read, names) = (folder.clone(), |look: Look| look.into_keys().collect::<Vec<_>>());
        let watcher = Watcher::new(&folder, move || drop(sender.send(names(look(&read))))).unwrap();
        let until = |name: &str| while told.recv_timeout(SOON).expect("every change is told") != [name] {};

        fs::write(folder.join("a.yaml"), "x").unwrap();
        until("a.yaml");
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("b.yaml"), "y").unwrap();
        until("b.yaml");
        // Its thread ends, and lets go of the sender.
        drop(watcher);
        while told.recv_timeout(SOON).is_ok() {}
        assert_eq!(told.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
    }
}
