//! kube-proxy's truth tables of packet flows, against the loaded programs and real sockets: with kube-proxy's settings every row holds, with
//! netlb's defaults at most the masquerade towards backends on this node differs.
//!
//! `truth/rules` holds rows of our own in the same form. `NETLB_TRUTH_DIR` names another folder of documents.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::truth::document::{Document, load};
use netlb_tests::truth::machine::Machine;
use netlb_tests::truth::settings::Setting;
use netlb_tests::truth::site::Site;
use netlb_tests::truth::variants::Variant;
use netlb_tests::truth::{Tally, check};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

fn main() -> ExitCode {
    let folders = match std::env::var_os("NETLB_TRUTH_DIR") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => ["flows", "rules"].map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("truth").join(name)).into(),
    };
    let loaded: Result<Vec<(String, Vec<Document>)>> =
        folders.iter().map(|folder| Ok((table(folder), load(folder)?))).collect();
    let tables = match loaded {
        Ok(tables) => tables,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let run = RefCell::new(Run::default());
    let mut trials = Vec::new();
    for (table, documents) in &tables {
        for variant in Variant::ALL {
            for document in documents.iter().filter_map(|document| variant.of(document)).map(Rc::new) {
                for setting in Setting::ALL {
                    let (run, document) = (&run, Rc::clone(&document));
                    let name = format!("{table}/{}, {}: {}", document.name, variant.name(), setting.name());
                    let key = (table.as_str(), variant, setting);
                    trials.push(Trial::new(name, move || {
                        run.borrow_mut().check(&document, key).map_err(|error| format!("{error:#}"))
                    }));
                }
            }
        }
    }
    let code = harness::run(need(&[Need::Root]), trials);
    for (table, _) in &tables {
        for variant in Variant::ALL {
            for setting in Setting::ALL {
                if let Some(tally) = run.borrow().tallies.get(&(table.as_str(), variant, setting)) {
                    println!("{table}, {}, {}: {tally}", setting.name(), variant.name());
                }
            }
        }
    }
    code
}

/// What a folder of documents is called.
fn table(folder: &Path) -> String {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

/// A table, and how it is tried.
type Key<'a> = (&'a str, Variant, Setting);

/// What the trials share.
#[derive(Default)]
struct Run<'a> {
    machine: Option<Machine>,
    /// Of the document that was tried last.
    site: Option<(Rc<Document>, Site)>,
    tallies: BTreeMap<Key<'a>, Tally>,
}

impl<'a> Run<'a> {
    /// Tries a document; what is missing for it is made first.
    fn check(&mut self, document: &Rc<Document>, key: Key<'a>) -> Result<()> {
        let machine = match &mut self.machine {
            Some(machine) => machine,
            None => self.machine.insert(Machine::start()?),
        };
        self.site.take_if(|(other, _)| !Rc::ptr_eq(other, document));
        let (_, site) = match &mut self.site {
            Some(site) => site,
            None => self.site.insert((Rc::clone(document), Site::new(document, &machine.cgroup)?)),
        };
        let (tally, result) = check(machine, site, document, key.2, Path::new(ACTOR));
        self.tallies.entry(key).or_default().add(&tally);
        result
    }
}
