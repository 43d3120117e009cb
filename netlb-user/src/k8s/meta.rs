//! What all objects share: name, namespace, labels, age.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::place::{Place, Report, Reported, quote};
use crate::model::Meta;
use crate::model::scheduler::MAX_WEIGHT;

/// Longest name Kubernetes allows (a DNS subdomain, RFC 1123).
const MAX_NAME: usize = 253;

/// Longest port name and namespace (a DNS label).
pub(super) const MAX_LABEL: usize = 63;

/// `metadata`, read.
pub(super) struct ObjectMeta {
    /// Empty for kinds outside namespaces.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    /// netlb's own, without [`PREFIX`]; others may be large, and are no matter.
    pub annotations: BTreeMap<String, String>,
    pub meta: Meta,
}

/// What annotations for netlb begin with.
pub(super) const PREFIX: &str = "netlb.io/";

/// Reports an annotation of netlb's.
pub(super) fn annotation(root: &Place<'_>, key: &str, message: String, remedy: &str, report: &mut Report) -> Reported {
    let key = format!("{PREFIX}{key}");
    let metadata = root.get("metadata");
    match metadata.as_ref().and_then(|metadata| metadata.get("annotations")) {
        Some(annotations) => report.field(&annotations, &key, message, remedy),
        None => report.field(root, &key, message, remedy),
    }
}

/// Reports annotations for netlb that an object of this kind does not have: a slip of the pen would else go unseen.
pub(super) fn only_known(root: &Place<'_>, meta: &ObjectMeta, known: &[&str], report: &mut Report) {
    for key in meta.annotations.keys().filter(|key| !known.contains(&key.as_str())) {
        let known: Vec<String> = known.iter().map(|known| format!("{PREFIX}{known}")).collect();
        let remedy = format!("write {}, or take it out", known.join(" or "));
        annotation(root, key, "is not an annotation netlb knows here".to_owned(), &remedy, report);
    }
}

/// A weight of a backend.
pub(super) fn weight(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|weight| *weight <= MAX_WEIGHT)
}

/// Whether a name is a DNS subdomain as Kubernetes means it.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_label_of_any_length)
}

/// Whether a text is a DNS label: what port names and namespaces are.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_label_of_any_length(text)
}

fn is_label_of_any_length(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Reads name and namespace alone: the identity of an object.
pub(super) fn identity<'a>(
    root: &'a Place<'a>,
    namespaced: bool,
    report: &mut Report,
) -> Result<(Arc<str>, Arc<str>), Reported> {
    let Some(metadata) = root.object("metadata", report)? else {
        return Err(report.field(root, "metadata", "is missing", "give the object metadata with a name"));
    };
    let Some(name) = metadata.text("name", report)? else {
        return Err(report.field(&metadata, "name", "is missing", "give the object a name"));
    };
    if !is_name(name) {
        return Err(bad_name(&metadata, "name", name, MAX_NAME, report));
    }
    if !namespaced {
        return Ok(("".into(), name.into()));
    }
    let namespace = metadata.text("namespace", report)?.filter(|text| !text.is_empty()).unwrap_or("default");
    if !is_label(namespace) {
        return Err(bad_name(&metadata, "namespace", namespace, MAX_LABEL, report));
    }
    Ok((namespace.into(), name.into()))
}

fn bad_name(metadata: &Place<'_>, key: &str, name: &str, max: usize, report: &mut Report) -> Reported {
    let message = if name.len() > max {
        format!("{} has {} characters, and at most {max} are allowed", quote(name), name.len())
    } else {
        format!("{} is not a DNS name", quote(name))
    };
    report.field(metadata, key, message, "use lower case letters, digits, '-' and, in names, '.'")
}

/// Reads the rest of `metadata`; what is wrong there is reported and left out.
pub(super) fn rest<'a>(root: &'a Place<'a>, namespace: Arc<str>, name: Arc<str>, report: &mut Report) -> ObjectMeta {
    let mut out = ObjectMeta {
        namespace,
        name,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        meta: Meta { file: report.file.clone(), created: None },
    };
    let Some(metadata) = root.get("metadata") else { return out };
    for (key, value) in metadata.map("labels", report).ok().flatten().into_iter().flatten() {
        match value.as_str() {
            Some(text) => {
                out.labels.insert(key.clone(), text.to_owned());
            }
            None => {
                let message = format!("label {} is not a string", quote(key));
                report.field(&metadata, "labels", message, "put its value in quotes");
            }
        }
    }
    for (key, value) in metadata.map("annotations", report).ok().flatten().into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        match value.as_str() {
            Some(text) => {
                out.annotations.insert(name.to_owned(), text.to_owned());
            }
            None => {
                let message = format!("annotation {} is not a string", quote(key));
                report.field(&metadata, "annotations", message, "put its value in quotes");
            }
        }
    }
    if let Ok(Some(text)) = metadata.text("creationTimestamp", report) {
        match seconds(text) {
            Some(created) => out.meta.created = Some(created),
            None => {
                let message = format!("{} is not a time; the object counts as the youngest", quote(text));
                report.field(&metadata, "creationTimestamp", message, "write it as 2026-01-31T12:00:00Z");
            }
        }
    }
    out
}

/// Seconds since 1970 of an RFC 3339 time.
fn seconds(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, offset) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let at = time.rfind(['+', '-'])?;
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let east = digits(hours)? * 3600 + digits(minutes)? * 60;
            (&time[..at], if time[at..].starts_with('-') { -east } else { east })
        }
    };
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let mut time = time.splitn(3, ':').map(digits);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 in the proleptic Gregorian calendar, years beginning in March (Hinnant, "chrono-compatible low-level date algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn digits(text: &str) -> Option<i64> {
    let short = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    if short { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_seconds() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:01Z", Some(951_825_601)),
            ("2026-03-01T00:00:00.123Z", Some(1_772_323_200)),
            ("2026-03-01T01:00:00+01:00", Some(1_772_323_200)),
            ("2026-13-01T00:00:00Z", None),
            ("yesterday", None),
            ("2026-03-01T00:00Z", None),
            ("2026-03-0éT00:00:00Z", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }

    #[test]
    fn names_are_dns_names() {
        for good in ["a", "a-b.c1", &"x".repeat(253)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "a b", "../etc", "a\n", "-a", "a-", "a..b", &"x".repeat(254)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
