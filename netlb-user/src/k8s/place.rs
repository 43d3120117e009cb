//! A place in an object: a value and the path that leads there, with getters that report what is of the wrong type.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::model::{Cidr, Problem};

/// A problem was reported; what needed the value does without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reported;

/// A value and where it stands. `null` counts as absent, as in Kubernetes.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    value: &'a Value,
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Entry(&'a str, usize),
}

/// Collects the problems of one object.
pub(super) struct Report {
    pub file: Option<Arc<str>>,
    pub object: String,
    pub problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(file: Option<Arc<str>>, object: String) -> Self {
        Report { file, object, problems: Vec::new() }
    }

    /// Reports something about the field `key` of a place.
    pub(super) fn field(&mut self, at: &Place<'_>, key: &str, message: impl Into<String>, remedy: &str) -> Reported {
        let child = Place { value: &Value::Null, parent: Some(at), step: Step::Key(key) };
        self.place(&child, message, remedy)
    }

    /// Reports something about a place.
    pub(super) fn place(&mut self, at: &Place<'_>, message: impl Into<String>, remedy: &str) -> Reported {
        self.problems.push(Problem {
            file: self.file.as_deref().map(str::to_owned),
            object: self.object.clone(),
            field: at.to_string(),
            message: message.into(),
            remedy: remedy.to_owned(),
        });
        Reported
    }

    fn wrong_type(&mut self, at: &Place<'_>, want: &str) -> Reported {
        self.place(at, format!("is {}, not {want}", describe(at.value)), &format!("write {want}"))
    }
}

impl<'a> Place<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Place { value, parent: None, step: Step::Root }
    }

    pub(super) fn is_object(&self) -> bool {
        self.value.is_object()
    }

    /// Whether the object says a name, usable or not.
    pub(super) fn has_name(&self) -> bool {
        self.value.get("metadata").and_then(|metadata| metadata.get("name")).is_some_and(Value::is_string)
    }

    /// A child by name, of any type.
    pub(super) fn get(&'a self, key: &'a str) -> Option<Place<'a>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Place { value, parent: Some(self), step: Step::Key(key) })
    }

    /// A child that is an object.
    pub(super) fn object(&'a self, key: &'a str, report: &mut Report) -> Result<Option<Place<'a>>, Reported> {
        match self.get(key) {
            Some(child) if !child.value.is_object() => Err(report.wrong_type(&child, "a mapping")),
            other => Ok(other),
        }
    }

    /// The entries of a child that is a list; absent: none.
    pub(super) fn list(&'a self, key: &'a str, report: &mut Report) -> Result<Vec<Place<'a>>, Reported> {
        let Some(child) = self.get(key) else { return Ok(Vec::new()) };
        let Some(items) = child.value.as_array() else { return Err(report.wrong_type(&child, "a list")) };
        let entry = |(index, value)| Place { value, parent: Some(self), step: Step::Entry(key, index) };
        Ok(items.iter().enumerate().map(entry).collect())
    }

    pub(super) fn text(&'a self, key: &'a str, report: &mut Report) -> Result<Option<&'a str>, Reported> {
        match self.get(key) {
            None => Ok(None),
            Some(child) => child.value.as_str().map(Some).ok_or_else(|| report.wrong_type(&child, "a string")),
        }
    }

    pub(super) fn boolean(&'a self, key: &'a str, report: &mut Report) -> Result<Option<bool>, Reported> {
        match self.get(key) {
            None => Ok(None),
            Some(child) => child.value.as_bool().map(Some).ok_or_else(|| report.wrong_type(&child, "true or false")),
        }
    }

    pub(super) fn integer(&'a self, key: &'a str, report: &mut Report) -> Result<Option<i64>, Reported> {
        match self.get(key) {
            None => Ok(None),
            Some(child) => child.value.as_i64().map(Some).ok_or_else(|| report.wrong_type(&child, "a whole number")),
        }
    }

    pub(super) fn map(&'a self, key: &'a str, report: &mut Report) -> Result<Option<&'a Map<String, Value>>, Reported> {
        Ok(self.object(key, report)?.and_then(|child| child.value.as_object()))
    }
}

impl<'a> Place<'a> {
    /// The place's own value if it is a string; what is none is no matter.
    pub(super) fn word(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    /// The place's own value as a string.
    pub(super) fn as_text(&self, report: &mut Report) -> Result<&'a str, Reported> {
        self.value.as_str().ok_or_else(|| report.wrong_type(self, "a string"))
    }

    /// The place's own value as an IP address.
    pub(super) fn as_ip(&self, report: &mut Report) -> Result<IpAddr, Reported> {
        let text = self.as_text(report)?;
        text.parse().map_err(|_| {
            let message = format!("{} is not an IP address", quote(text));
            report.place(self, message, "write an IPv4 or IPv6 address")
        })
    }

    /// The place's own value as a range of addresses.
    pub(super) fn as_cidr(&self, report: &mut Report) -> Result<Cidr, Reported> {
        let text = self.as_text(report)?;
        Cidr::parse(text.trim()).ok_or_else(|| {
            let message = format!("{} is not a range of addresses", quote(text));
            report.place(self, message, "write it as address/length, such as 10.96.0.0/16")
        })
    }

    /// A child that is a string with one of a few values.
    pub(super) fn choice<T: Copy>(
        &'a self,
        key: &'a str,
        choices: &[(&str, T)],
        report: &mut Report,
    ) -> Result<Option<T>, Reported> {
        let Some(text) = self.text(key, report)? else { return Ok(None) };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(Some(*value));
        }
        let known: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        Err(report.field(
            self,
            key,
            format!("{} is not known", quote(text)),
            &format!("write one of {}", known.join(", ")),
        ))
    }

    /// A child that is a port number, 1..=65535.
    pub(super) fn port(&'a self, key: &'a str, report: &mut Report) -> Result<Option<u16>, Reported> {
        let Some(number) = self.integer(key, report)? else { return Ok(None) };
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Some(port)),
            Ok(_) | Err(_) => {
                Err(report.field(self, key, format!("{number} is not a port"), "write a number from 1 to 65535"))
            }
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.step, Step::Root) {
                f.write_str(".")?;
            }
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Key(key) => f.write_str(key),
            Step::Entry(key, index) => write!(f, "{key}[{index}]"),
        }
    }
}

/// Longest text quoted in a message, in characters.
const QUOTED: usize = 64;

/// Text from an object, fit for a log line: control characters escaped, cut when long.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == QUOTED {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The same in quotes.
pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", printable(text))
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {}", quote(s)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_problem_names_the_path_of_its_field() {
        let value = json!({"spec": {"ports": [{"port": 80}, {"port": "eighty"}, {"port": 70000}]}});
        let mut report = Report::new(None, "Service a/b".to_owned());
        let root = Place::root(&value);
        let spec = root.object("spec", &mut report).unwrap().unwrap();
        let ports = spec.list("ports", &mut report).unwrap();
        let got: Vec<_> = ports.iter().map(|p| p.port("port", &mut report)).collect();
        assert_eq!(got, [Ok(Some(80)), Err(Reported), Err(Reported)]);
        let said: Vec<_> = report.problems.iter().map(|p| format!("{} {}", p.field, p.message)).collect();
        assert_eq!(
            said,
            [
                "spec.ports[1].port is the string \"eighty\", not a whole number",
                "spec.ports[2].port 70000 is not a port"
            ]
        );
    }

    #[test]
    fn hostile_text_is_cut_and_escaped() {
        let text = printable(&format!("a\n\u{1b}[31m{}", "x".repeat(10_000)));
        assert!(text.starts_with("a\\n\\u{1b}[31mx") && text.ends_with('…') && text.len() < 90, "{text}");
    }
}
