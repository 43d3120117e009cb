//! Upstream's own end-to-end tests: which of them run, and what became of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::proxy::Proxy;

/// The selection that is committed.
const SELECTION: &str = include_str!("../conformance.yaml");
/// In front of every name here.
const GROUP: &str = "[sig-network] ";

/// Which specs run.
#[derive(Debug)]
pub struct Selection {
    focus: Vec<Regex>,
    left_out: Vec<Unwanted>,
    smoke: Vec<String>,
}

/// What is left out, why, and with which proxies; none named: with all.
#[derive(Debug)]
struct Unwanted {
    pattern: Regex,
    why: String,
    with: Vec<Proxy>,
}

/// In the names of specs that disturb others, though upstream's suite would run them beside others.
const DISRUPTIVE: &str = "[Disruptive]";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    focus: Vec<String>,
    left_out: Vec<LeftOut>,
    smoke: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftOut {
    #[serde(rename = "match")]
    pattern: String,
    why: String,
    #[serde(default)]
    with: Vec<String>,
}

/// What became of a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, with what it said.
    Failed(String),
    /// It did not run, and why.
    LeftOut(String),
}

/// What became of all specs that were looked at, by name, for one service proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// What served Services, as a column is called.
    pub proxy: String,
    /// When the run ended: a date.
    pub date: String,
    /// Names, without the group's.
    pub specs: BTreeMap<String, Outcome>,
}

impl Selection {
    /// The selection that is committed.
    ///
    /// # Errors
    /// When it is not understood.
    pub fn committed() -> Result<Self> {
        Self::parse(SELECTION)
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = serde_norway::from_str(text).context("conformance.yaml is not understood")?;
        let regex =
            |pattern: &str| Regex::new(pattern).with_context(|| format!("{pattern:?} is no regular expression"));
        Ok(Self {
            focus: file.focus.iter().map(|pattern| regex(pattern)).collect::<Result<_>>()?,
            left_out: file
                .left_out
                .into_iter()
                .map(|entry| {
                    let with = entry.with.iter().map(|name| name.parse()).collect::<Result<_>>()?;
                    Ok(Unwanted { pattern: regex(&entry.pattern)?, why: entry.why, with })
                })
                .collect::<Result<_>>()?,
            smoke: file.smoke,
        })
    }

    /// Only specs whose names match `pattern`, of all that may run.
    ///
    /// # Errors
    /// When it is no regular expression.
    pub fn narrow(&mut self, pattern: &str) -> Result<()> {
        self.focus = vec![Regex::new(pattern).with_context(|| format!("{pattern:?} is no regular expression"))?];
        Ok(())
    }

    /// Only the specs for CI.
    ///
    /// # Errors
    /// When there are none.
    pub fn smoke(&mut self) -> Result<()> {
        if self.smoke.is_empty() {
            bail!("conformance.yaml names no specs under `smoke`");
        }
        let exact = self.smoke.iter().map(|name| Regex::new(&format!("^{}$", regex::escape(name))));
        self.focus = exact.collect::<Result<_, _>>().context("a name that cannot be escaped")?;
        Ok(())
    }

    /// Which of `all` names (with the group's) are to run with `proxy`, and what is left out, and why, by name without the
    /// group's. Names that are not looked at are in neither.
    #[must_use]
    pub fn choose<'a>(
        &self,
        proxy: Proxy,
        all: impl IntoIterator<Item = &'a str>,
    ) -> (Vec<&'a str>, BTreeMap<String, Outcome>) {
        let (mut chosen, mut left_out) = (Vec::new(), BTreeMap::new());
        for full in all {
            let Some(name) = full.strip_prefix(GROUP) else { continue };
            if !self.focus.iter().any(|pattern| pattern.is_match(name)) {
                continue;
            }
            let fits = |entry: &&Unwanted| {
                entry.pattern.is_match(name) && (entry.with.is_empty() || entry.with.contains(&proxy))
            };
            match self.left_out.iter().find(fits) {
                Some(entry) => {
                    left_out.insert(name.to_owned(), Outcome::LeftOut(entry.why.clone()));
                }
                None => chosen.push(full),
            }
        }
        (chosen, left_out)
    }
}

/// Those that may run beside others, and those that must run alone (whatever is marked serial, the suite itself runs alone).
#[must_use]
pub fn alone<'a>(chosen: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    chosen.iter().partition(|name| !name.contains(DISRUPTIVE))
}

/// A pattern that fits these names and no others, for ginkgo's `--focus`, which sees the suite's description in front of a name.
/// In Go's syntax, which has what [`regex::escape`] makes.
#[must_use]
pub fn focus(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    format!(" ({})$", names.join("|"))
}

/// What ginkgo's JSON report says: names in order, with what became of each.
///
/// # Errors
/// When it is not understood.
pub fn read_report(text: &str) -> Result<Vec<(String, Outcome)>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Suite {
        #[serde(default)]
        special_suite_failure_reasons: Option<Vec<String>>,
        spec_reports: Vec<Spec>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Spec {
        container_hierarchy_texts: Option<Vec<String>>,
        leaf_node_type: String,
        leaf_node_text: String,
        state: String,
        failure: Option<Failure>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failure {
        #[serde(default)]
        message: String,
    }
    let suites: Vec<Suite> = serde_json::from_str(text).context("ginkgo's report is not understood")?;
    let mut specs = Vec::new();
    for suite in suites {
        for spec in suite.spec_reports {
            let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
            let mut name = spec.container_hierarchy_texts.unwrap_or_default();
            name.push(spec.leaf_node_text);
            let name = name.join(" ");
            match (spec.leaf_node_type.as_str(), spec.state.as_str()) {
                ("It", "passed") => specs.push((name, Outcome::Passed)),
                ("It", "skipped" | "pending") => specs.push((name, Outcome::LeftOut(message))),
                ("It", _) => specs.push((name, Outcome::Failed(format!("{}: {message}", spec.state)))),
                // What prepares the suite is of interest only when it fails: then nothing ran.
                (_, "passed" | "skipped") => {}
                (node, state) => bail!("{node} of the suite {state}: {message}"),
            }
        }
        if specs.is_empty() {
            bail!("the suite ran no spec: {}", suite.special_suite_failure_reasons.unwrap_or_default().join("; "));
        }
    }
    Ok(specs)
}

impl Results {
    /// What became of the chosen specs, and of those left out.
    #[must_use]
    pub fn new(
        proxy: &str,
        date: &str,
        chosen: &[&str],
        left_out: BTreeMap<String, Outcome>,
        report: &[(String, Outcome)],
    ) -> Self {
        let mut specs = left_out;
        for full in chosen {
            let outcome = report.iter().find(|(name, _)| name == full).map(|(_, outcome)| outcome.clone());
            let outcome = match outcome {
                Some(Outcome::LeftOut(why)) if why.is_empty() => Outcome::Failed("it did not run".to_owned()),
                Some(outcome) => outcome,
                None => Outcome::Failed("it is not in ginkgo's report".to_owned()),
            };
            specs.insert(full.strip_prefix(GROUP).unwrap_or(full).to_owned(), outcome);
        }
        Self { proxy: proxy.to_owned(), date: date.to_owned(), specs }
    }

    /// Adds what became, in another run, of specs that this one left out: those that need more nodes, say. What has run here
    /// stays as it was. Returns how many were added.
    pub fn complete(&mut self, other: &Self) -> usize {
        let ran = other.specs.iter().filter(|(_, outcome)| !matches!(outcome, Outcome::LeftOut(_)));
        let left_out = |name: &String| matches!(self.specs.get(name), Some(Outcome::LeftOut(_)));
        let added: Vec<_> = ran.filter(|(name, _)| left_out(name)).map(|(n, o)| (n.clone(), o.clone())).collect();
        let count = added.len();
        self.specs.extend(added);
        count
    }

    /// How many passed, failed and were left out.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let count = |wanted: fn(&Outcome) -> bool| self.specs.values().filter(|outcome| wanted(outcome)).count();
        [
            count(|outcome| matches!(outcome, Outcome::Passed)),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::LeftOut(_))),
        ]
    }
}

/// Runs side by side, as a page: a column for each proxy, a row for each spec, then why specs were left out.
#[must_use]
pub fn page(kubernetes: &str, runs: &[Results]) -> String {
    let mut page = format!(
        "# Upstream's end-to-end tests\n\nMade by `cargo xtask conformance --report`: specs of `[sig-network]` of Kubernetes {kubernetes}, in the cluster of \
         `cargo xtask cluster up`, one column for each service proxy.\n\n| | {} |\n|---|{}\n",
        runs.iter().map(|run| run.proxy.as_str()).collect::<Vec<_>>().join(" | "),
        "---|".repeat(runs.len())
    );
    let line = |name: &str, cells: Vec<String>| format!("| {} | {} |\n", name.replace('|', "\\|"), cells.join(" | "));
    page += &line("date", runs.iter().map(|run| run.date.clone()).collect());
    for (index, name) in ["passed", "failed", "left out"].iter().enumerate() {
        let cells = runs.iter().map(|run| run.counts().get(index).copied().unwrap_or_default().to_string());
        page += &line(&format!("**{name}**"), cells.collect());
    }
    let mut names: Vec<&String> = runs.iter().flat_map(|run| run.specs.keys()).collect();
    names.sort();
    names.dedup();
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in names {
        let outcomes: Vec<Option<&Outcome>> = runs.iter().map(|run| run.specs.get(name)).collect();
        // With which proxies, by the reason.
        let mut without: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (run, outcome) in runs.iter().zip(&outcomes) {
            if let Some(Outcome::LeftOut(why)) = outcome {
                without.entry(why).or_default().push(&run.proxy);
            }
        }
        let everywhere = outcomes.iter().flatten().all(|outcome| matches!(outcome, Outcome::LeftOut(_)));
        for (why, proxies) in without {
            let line = if everywhere { name.clone() } else { format!("{name} (with {})", proxies.join(", ")) };
            let lines = reasons.entry(why).or_default();
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        if everywhere {
            continue;
        }
        let cell = |outcome: &Option<&Outcome>| match outcome {
            Some(Outcome::Passed) => "passed".to_owned(),
            Some(Outcome::Failed(_)) => "**failed**".to_owned(),
            Some(Outcome::LeftOut(_)) => "left out".to_owned(),
            None => "–".to_owned(),
        };
        page += &line(name, outcomes.iter().map(cell).collect());
    }
    page += "\n## Left out\n\n";
    for (why, names) in reasons {
        page += &format!("{}:\n\n", why.trim());
        for name in names {
            page += &format!("- {name}\n");
        }
        page += "\n";
    }
    page.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "[sig-network] Services should (work)",
        "[sig-network] Services: sctp [Feature:SCTPConnectivity]",
        "[sig-network] DNS should provide names",
        "[sig-storage] Services should be stored",
    ];

    #[test]
    fn a_name_is_run_or_left_out_with_a_reason_or_of_no_interest() {
        let mut selection = Selection::committed().unwrap();
        let (chosen, left_out) = selection.choose(Proxy::Netlb, NAMES);
        assert_eq!(chosen, [NAMES[0]]);
        let why = Outcome::LeftOut("the kernel of the build machines has no SCTP sockets".to_owned());
        assert_eq!(left_out, BTreeMap::from([("Services: sctp [Feature:SCTPConnectivity]".to_owned(), why)]));
        selection.narrow("provide").unwrap();
        assert_eq!(selection.choose(Proxy::Netlb, NAMES).0, [NAMES[2]]);
    }

    #[test]
    fn what_is_left_out_with_one_proxy_runs_alone_with_another() {
        let selection = Selection::committed().unwrap();
        let names = ["[sig-network] Services should work after restarting kube-proxy [Disruptive]", NAMES[0]];
        let (chosen, _) = selection.choose(Proxy::Netlb, names);
        assert_eq!(alone(&chosen), (vec![names[1]], vec![names[0]]));
        let (chosen, left_out) = selection.choose(Proxy::Nftables, names);
        assert_eq!(chosen, [names[1]]);
        let passed = BTreeMap::from([(left_out.keys().next().unwrap().clone(), Outcome::Passed)]);
        let run = |proxy: &str, specs| Results { proxy: proxy.to_owned(), date: "2026-01-02".to_owned(), specs };
        let page = page("v1", &[run("netlb", passed), run("kube-proxy", left_out)]);
        assert!(page.contains("[Disruptive] | passed | left out |\n"), "{page}");
        assert!(page.contains("[Disruptive] (with kube-proxy)\n"), "{page}");
    }

    #[test]
    fn the_smoke_test_is_about_ten_specs_by_their_whole_names() {
        let mut selection = Selection::committed().unwrap();
        let names: Vec<String> = selection.smoke.iter().map(|name| format!("{GROUP}{name}")).collect();
        assert!((8..=12).contains(&names.len()), "{}", names.len());
        selection.smoke().unwrap();
        let (chosen, left_out) = selection.choose(Proxy::Netlb, names.iter().map(String::as_str));
        assert_eq!(chosen.len(), names.len());
        assert!(left_out.is_empty());
        let longer = format!("{} and more", names[0]);
        assert!(selection.choose(Proxy::Netlb, [longer.as_str()]).0.is_empty());
    }

    #[test]
    fn a_focus_fits_whole_names_only() {
        let pattern = Regex::new(&focus(&[NAMES[0]])).unwrap();
        assert!(pattern.is_match(&format!("Suite {}", NAMES[0])) && !pattern.is_match(&format!("Suite {}!", NAMES[0])));
    }

    #[test]
    fn what_did_not_run_has_not_passed() {
        let report = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "a", "State": "passed"},
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "b", "State": "failed", "Failure": {"Message": "no answer"}},
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "c", "State": "skipped"},
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "d", "State": "skipped", "Failure": {"Message": "one zone"}},
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "e", "State": "timedout"}]}]"#;
        let report = read_report(report).unwrap();
        let names: Vec<String> = "abcdef".chars().map(|name| format!("[sig-network] Services {name}")).collect();
        let chosen: Vec<&str> = names.iter().map(String::as_str).collect();
        let results = Results::new("netlb", "2026-01-02", &chosen, BTreeMap::new(), &report);
        assert_eq!(results.counts(), [1, 4, 1]);
        assert_eq!(results.specs["Services b"], Outcome::Failed("failed: no answer".to_owned()));
        assert_eq!(results.specs["Services d"], Outcome::LeftOut("one zone".to_owned()));
        let page = page("v1", &[results]);
        assert!(
            page.contains("| Services b | **failed** |\n") && page.contains("one zone:\n\n- Services d\n"),
            "{page}"
        );
    }

    #[test]
    fn a_run_adds_to_another_only_what_that_left_out() {
        let run = |outcomes: [Outcome; 3]| {
            let specs = ["a", "b", "c"].map(str::to_owned).into_iter().zip(outcomes).collect();
            Results { proxy: "netlb".to_owned(), date: "2026-01-02".to_owned(), specs }
        };
        let (left_out, failed) =
            (|| Outcome::LeftOut("few nodes".to_owned()), || Outcome::Failed("no answer".to_owned()));
        let mut whole = run([left_out(), failed(), left_out()]);
        assert_eq!(whole.complete(&run([failed(), Outcome::Passed, left_out()])), 1);
        assert_eq!(whole, run([failed(), failed(), left_out()]));
    }

    #[test]
    fn a_suite_that_could_not_begin_is_an_error() {
        let report = r#"[{"SpecReports": [{"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "failed", "Failure": {"Message": "no nodes"}}]}]"#;
        assert!(read_report(report).unwrap_err().to_string().contains("no nodes"));
    }
}
