//! Reading manifests: files or folders, many documents a file, YAML or JSON.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// Objects, in the order of the files and documents; lists are taken apart.
    pub objects: Vec<Value>,
    /// Files that are not YAML. They go to the agent as they are, for it to report.
    pub broken: Vec<Broken>,
}

/// A file that could not be read as YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Where it came from.
    pub origin: String,
    /// The file's text.
    pub text: String,
    /// What is wrong with it.
    pub error: String,
}

impl Manifests {
    /// Adds the documents of `text`. Those before a broken one are kept, and the text as a whole is kept as broken.
    pub fn parse(&mut self, origin: &str, text: &str) {
        for document in serde_norway::Deserializer::from_str(text) {
            match Value::deserialize(document) {
                Ok(Value::Null) => {}
                Ok(value) => self.add(value),
                Err(error) => {
                    self.broken.push(Broken {
                        origin: origin.to_owned(),
                        text: text.to_owned(),
                        error: error.to_string(),
                    });
                    return;
                }
            }
        }
    }

    fn add(&mut self, value: Value) {
        let list = value.pointer("/kind").and_then(Value::as_str).is_some_and(|kind| kind == "List");
        match value.pointer("/items").and_then(Value::as_array) {
            Some(items) if list => self.objects.extend(items.iter().cloned()),
            _ => self.objects.push(value),
        }
    }
}

/// Reads all `paths`, folders in the order of their file names.
///
/// # Errors
/// When a path does not exist or a folder has no manifest in it.
pub fn read(paths: &[PathBuf]) -> Result<Manifests> {
    let mut manifests = Manifests::default();
    for path in paths {
        for file in files(path)? {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            manifests.parse(&file.display().to_string(), &text);
        }
    }
    Ok(manifests)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot read the folder {}", path.display()))?.path();
        if file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("the folder {} holds no *.yaml, *.yml or *.json; name another with --manifests", path.display());
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_documents_and_lists() {
        let mut all = Manifests::default();
        all.parse("a", "# comment\n---\nkind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n");
        let kinds: Vec<_> = all.objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert!(all.broken.is_empty());
    }

    #[test]
    fn a_broken_document_keeps_those_before_it() {
        let mut all = Manifests::default();
        all.parse("a", "kind: A\n---\nkind: [unclosed\n");
        assert_eq!(all.objects.len(), 1);
        assert_eq!(all.broken.len(), 1);
        assert_eq!(all.broken[0].origin, "a");
    }
}
