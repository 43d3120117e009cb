//! A folder of manifests as a source: every `*.yaml`, `*.yml` and `*.json` in it, many documents a file.
//!
//! A file that cannot be parsed as a whole is not believed at all: it may be half written. What it said when it last could be stays, and a
//! problem names file and line. The same if its last document has lost its name. The other files go on.
//!
//! A file named `revision` (a decimal number) names the state of the folder; whoever writes the folder writes it last. It is read before the
//! files and after them: if it moved in between, all is read again, so a [`Snapshot`] holds at least what its revision promises.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::convert::convert;
use super::place::printable;
use crate::model::{Change, Object, ObjectKey, Problem};

/// The file that names the state of the folder.
const REVISION: &str = "revision";

/// How often a folder that keeps changing is read again before what was read is taken.
const ATTEMPTS: usize = 5;

/// A file changed this shortly before it was read may change again without its stamp telling so.
const RACY: Duration = Duration::from_secs(1);

/// Everything a folder says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    pub objects: BTreeMap<ObjectKey, Object>,
    /// In order of file, object and field.
    pub problems: Vec<Problem>,
    /// What the file `revision` says.
    pub revision: Option<String>,
    /// Every file has been parsed at least once, so what is in none of them does not exist.
    pub complete: bool,
}

impl Snapshot {
    /// What has to be told to somebody who knows `old`. Ends with [`Change::Synced`], after [`Change::Incomplete`] if this snapshot is not
    /// complete.
    pub fn changes_since(&self, old: &Snapshot) -> Vec<Change> {
        let changed = self.objects.iter().filter(|(key, object)| old.objects.get(key) != Some(object));
        let mut changes: Vec<Change> = changed.map(|(_, object)| Change::Apply(object.clone())).collect();
        let gone = old.objects.keys().filter(|key| !self.objects.contains_key(key));
        changes.extend(gone.cloned().map(Change::Delete));
        if !self.complete {
            changes.push(Change::Incomplete);
        }
        changes.push(Change::Synced);
        changes
    }
}

/// The folder itself could not be read: nothing is known, and nothing must change.
#[derive(Debug, thiserror::Error)]
#[error("source folder {}: {cause}; check --source and its permissions", folder.display())]
pub struct ReadError {
    pub folder: PathBuf,
    pub cause: io::Error,
}

/// A source folder. Remembers what each file said, so that only changed files are parsed again.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<String, File>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    content: Content,
    /// What is wrong with the file as it is now, although `content` is from before.
    broken: Option<Problem>,
    /// `content` comes from a file that could be read.
    known: bool,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Content {
    objects: Vec<Object>,
    problems: Vec<Problem>,
}

/// What tells one state of a file from another.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Stamp {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Folder { path: path.into(), files: BTreeMap::new() }
    }

    /// Reads the folder as it is now.
    pub fn read(&mut self) -> Result<Snapshot, ReadError> {
        let error = |folder: &Path| {
            let folder = folder.to_owned();
            move |cause| ReadError { folder, cause }
        };
        let mut before = self.revision();
        for attempt in 1.. {
            self.read_files().map_err(error(&self.path))?;
            let after = self.revision();
            if before == after || attempt == ATTEMPTS {
                break;
            }
            before = after;
        }
        // Of a folder that never stood still, the older name: what was read is at least that.
        Ok(self.snapshot(before))
    }

    fn revision(&self) -> Result<Option<String>, Problem> {
        let fault = |message: String| Problem {
            file: Some(REVISION.to_owned()),
            object: format!("file {REVISION}"),
            field: String::new(),
            message,
            remedy: "write a decimal number into it, by a temporary file and rename".to_owned(),
        };
        match fs::read_to_string(self.path.join(REVISION)) {
            Ok(text) => {
                let text = text.trim();
                let number = !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
                if number {
                    Ok(Some(text.to_owned()))
                } else {
                    Err(fault(format!("\"{}\" is not a number", printable(text))))
                }
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(fault(format!("cannot be read: {cause}"))),
        }
    }

    fn read_files(&mut self) -> io::Result<()> {
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // A name that is no text cannot be ours: manifests are named by people.
            match entry.file_name().into_string() {
                Ok(name) if is_manifest(&name) => drop(present.insert(name, entry.path())),
                Ok(_) | Err(_) => {}
            }
        }
        self.files.retain(|name, _| present.contains_key(name));
        for (name, path) in present {
            let (meta, now) = (fs::metadata(&path), SystemTime::now());
            let meta = match meta {
                Ok(meta) if meta.is_file() => meta,
                Ok(_) => continue,
                // Gone between listing and reading.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    self.files.remove(&name);
                    continue;
                }
                Err(cause) => {
                    let file = self.files.entry(name.clone()).or_default();
                    (file.stamp, file.broken) = (None, Some(unreadable(&name, &cause)));
                    continue;
                }
            };
            let (stamp, racy) = (Stamp::of(&meta), is_racy(&meta, now));
            let file = self.files.entry(name.clone()).or_default();
            if file.stamp.as_ref() == Some(&stamp) {
                continue;
            }
            match fs::read(&path) {
                Ok(bytes) => file.take(&name, &bytes),
                Err(cause) => file.broken = Some(unreadable(&name, &cause)),
            }
            file.stamp = if racy { None } else { Some(stamp) };
        }
        Ok(())
    }

    fn snapshot(&self, revision: Result<Option<String>, Problem>) -> Snapshot {
        let mut snapshot = Snapshot { complete: true, ..Snapshot::default() };
        let mut from: BTreeMap<ObjectKey, &str> = BTreeMap::new();
        for (name, file) in &self.files {
            snapshot.problems.extend(file.content.problems.iter().cloned());
            snapshot.problems.extend(file.broken.iter().cloned());
            snapshot.complete &= file.known;
            for object in &file.content.objects {
                let key = object.key();
                if let Some(first) = from.get(&key) {
                    snapshot.problems.push(Problem {
                        file: Some(printable(name)),
                        object: key.to_string(),
                        field: "metadata.name".to_owned(),
                        message: format!("stands in {} already, which counts; this one is not used", printable(first)),
                        remedy: "keep one of the two".to_owned(),
                    });
                    continue;
                }
                from.insert(key.clone(), name);
                snapshot.objects.insert(key, object.clone());
            }
        }
        match revision {
            Ok(revision) => snapshot.revision = revision,
            Err(problem) => snapshot.problems.push(problem),
        }
        snapshot.problems.sort();
        snapshot
    }
}

impl File {
    /// The file says this now.
    fn take(&mut self, name: &str, bytes: &[u8]) {
        match parse(name, bytes) {
            Ok((content, whole)) if whole || !self.known => {
                *self = File { stamp: None, content, broken: None, known: true };
            }
            // Its last document has lost its name: what the content says of it stands in its problems.
            Ok((content, _)) => {
                self.broken = content.problems.into_iter().next_back().map(|problem| Problem {
                    message: format!(
                        "{}; the file may be half written, and all of it stays as it was",
                        problem.message
                    ),
                    ..problem
                });
            }
            Err(problem) => self.broken = Some(problem),
        }
    }
}

/// Parses a file. False: its last document has no identity.
fn parse(name: &str, bytes: &[u8]) -> Result<(Content, bool), Problem> {
    let fault = |line: Option<usize>, message: String| Problem {
        file: Some(printable(name)),
        object: format!("file {}", printable(name)),
        field: line.map(|line| format!("line {line}")).unwrap_or_default(),
        message: format!("{message}; what it said before stays, and nothing is removed while it was never read"),
        remedy: "correct the file; write it by a temporary file and rename".to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        fault(Some(line), "is not UTF-8".to_owned())
    })?;
    // A parser that ran out of text points behind it.
    let last = text.lines().count().max(1);
    let mut documents: Vec<Value> = Vec::new();
    if name.ends_with(".json") {
        for document in serde_json::Deserializer::from_str(text).into_iter() {
            documents.push(document.map_err(|e: serde_json::Error| fault(Some(e.line().min(last)), reason(&e)))?);
        }
    } else {
        for document in serde_norway::Deserializer::from_str(text) {
            let document = Value::deserialize(document)
                .map_err(|e| fault(e.location().map(|l| l.line().min(last)), reason(&e)))?;
            documents.push(document);
        }
    }
    let (mut content, mut whole) = (Content::default(), true);
    let file: Arc<str> = printable(name).into();
    for (index, document) in documents.iter().enumerate().filter(|(_, document)| !document.is_null()) {
        let mut converted = convert(document, Some(file.clone()), &format!("document {}", index + 1));
        whole = !converted.unidentified;
        content.objects.append(&mut converted.objects);
        content.problems.append(&mut converted.problems);
    }
    Ok((content, whole))
}

/// What a parser says, without the place: that stands beside it.
fn reason(error: &impl ToString) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    printable(what)
}

/// Manifests by name; what editors and writers leave lying about is not.
fn is_manifest(name: &str) -> bool {
    let ours = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    ours && !name.starts_with('.') && !name.ends_with('~') && !name.ends_with(".tmp")
}

fn is_racy(meta: &fs::Metadata, now: SystemTime) -> bool {
    let age = meta.modified().ok().and_then(|modified| now.duration_since(modified).ok());
    age.is_none_or(|age| age < RACY)
}

fn unreadable(name: &str, cause: &io::Error) -> Problem {
    Problem {
        file: Some(printable(name)),
        object: format!("file {}", printable(name)),
        field: String::new(),
        message: format!("cannot be read ({cause}); what it said before stays"),
        remedy: "check its permissions".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    struct Dir {
        dir: tempfile::TempDir,
        folder: Folder,
    }

    impl Dir {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::new(dir.path());
            Dir { dir, folder }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn read(&mut self) -> Snapshot {
            self.folder.read().unwrap()
        }
    }

    fn service(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
        )
    }

    fn names(snapshot: &Snapshot) -> Vec<String> {
        snapshot.objects.keys().map(ToString::to_string).collect()
    }

    fn said(snapshot: &Snapshot) -> Vec<String> {
        let one = |p: &Problem| format!("{} {} {}", p.file.as_deref().unwrap_or("-"), p.object, p.field);
        snapshot.problems.iter().map(one).collect()
    }

    #[test]
    fn manifests_are_read_and_litter_is_not() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &format!("---\n{}---\n---\n{}", service("one"), service("two")));
        dir.write("b.json", r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}]}"#);
        dir.write("c.yml", "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: three}\n  spec: {}\n");
        for litter in [".a.yaml", "a.yaml~", "a.yaml.tmp", ".a.yaml.swp", "notes.txt"] {
            dir.write(litter, "what: [is this");
        }
        dir.write("revision", "42\n");
        let snapshot = dir.read();
        let want = ["Namespace x", "Service default/one", "Service default/three", "Service default/two"];
        assert_eq!(names(&snapshot), want);
        assert_eq!((snapshot.revision.as_deref(), snapshot.complete, said(&snapshot)), (Some("42"), true, vec![]));
    }

    #[test]
    fn a_half_written_file_keeps_what_it_said() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one"));
        dir.write("b.yaml", &service("two"));
        dir.read();
        dir.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {na");
        dir.write("b.yaml", &service("three"));
        let snapshot = dir.read();
        assert_eq!(names(&snapshot), ["Service default/one", "Service default/three"]);
        assert_eq!(said(&snapshot), ["a.yaml file a.yaml line 3"]);
        assert!(snapshot.complete);
        // Cut where the rest still is YAML: the last document has no name.
        dir.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  na");
        let snapshot = dir.read();
        assert_eq!(names(&snapshot), ["Service default/one", "Service default/three"]);
        assert_eq!(said(&snapshot), ["a.yaml Service (document 1) metadata"]);
        dir.write("a.yaml", &service("one"));
        assert_eq!(said(&dir.read()), Vec::<String>::new());
    }

    #[test]
    fn a_folder_with_a_file_never_read_is_not_complete() {
        let mut dir = Dir::new();
        dir.write("a.yaml", "kind: [");
        dir.write("b.yaml", &service("two"));
        let first = dir.read();
        assert_eq!((first.complete, names(&first)), (false, vec!["Service default/two".to_owned()]));
        assert_eq!(first.changes_since(&first), [Change::Incomplete, Change::Synced]);
        fs::remove_file(dir.dir.path().join("a.yaml")).unwrap();
        let second = dir.read();
        assert!(second.complete);
        assert_eq!(second.changes_since(&first), [Change::Synced]);
    }

    #[test]
    fn the_first_file_by_name_wins() {
        let mut dir = Dir::new();
        dir.write("b.yaml", &service("one"));
        dir.write("a.yaml", &service("one").replace("80", "81"));
        let snapshot = dir.read();
        let Some(Object::Service(spec)) = snapshot.objects.values().next() else { panic!("{snapshot:?}") };
        assert_eq!((snapshot.objects.len(), spec.ports[0].port), (1, 81));
        assert_eq!(said(&snapshot), ["b.yaml Service default/one metadata.name"]);
    }

    #[test]
    fn changes_are_applies_then_deletes() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one"));
        let first = dir.read();
        dir.write("a.yaml", &service("two"));
        let changes = dir.read().changes_since(&first);
        let [Change::Apply(Object::Service(two)), Change::Delete(one), Change::Synced] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!((two.name.to_string(), one.kind, &*one.name), ("default/two".to_owned(), Kind::Service, "one"));
    }

    #[test]
    fn a_missing_folder_is_an_error_and_a_bad_revision_a_problem() {
        let error = Folder::new("/nonexistent/netlb").read().unwrap_err().to_string();
        assert!(error.starts_with("source folder /nonexistent/netlb: ") && error.ends_with("permissions"), "{error}");
        let mut dir = Dir::new();
        dir.write("c.yaml", &format!("{}---\nkind: Service\n  name: [\n", service("one")));
        assert_eq!(said(&dir.read()), ["c.yaml file c.yaml line 7"]);
        fs::remove_file(dir.dir.path().join("c.yaml")).unwrap();
        dir.write("revision", "soon");
        assert_eq!(said(&dir.read()), ["revision file revision "]);
        dir.write("bytes.yaml", "");
        fs::write(dir.dir.path().join("bytes.yaml"), b"a: 1\nb: \xff").unwrap();
        assert_eq!(said(&dir.read()), ["bytes.yaml file bytes.yaml line 2", "revision file revision "]);
    }
}
