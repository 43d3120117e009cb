//! kube-proxy's truth tables of packet flows, against the loaded programs and real sockets: with kube-proxy's settings every row holds, with
//! netlb's defaults at most the masquerade towards backends on this node differs.
//!
//! `NETLB_TRUTH_DIR` names another folder of documents.

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
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("truth/flows");
    let folder = std::env::var_os("NETLB_TRUTH_DIR").map_or(own, PathBuf::from);
    let documents = match load(&folder) {
        Ok(documents) => documents,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let run = RefCell::new(Run::default());
    let mut trials = Vec::new();
    for variant in Variant::ALL {
        for document in documents.iter().filter_map(|document| variant.of(document)).map(Rc::new) {
            for setting in Setting::ALL {
                let (run, document) = (&run, Rc::clone(&document));
                let name = format!("{}, {}: {}", document.name, variant.name(), setting.name());
                trials.push(Trial::new(name, move || {
                    run.borrow_mut().check(&document, setting, variant).map_err(|error| format!("{error:#}"))
                }));
            }
        }
    }
    let code = harness::run(need(&[Need::Root]), trials);
    for variant in Variant::ALL {
        for setting in Setting::ALL {
            if let Some(tally) = run.borrow().tallies.get(&(variant, setting)) {
                println!("{}, {}: {tally}", setting.name(), variant.name());
            }
        }
    }
    code
}

/// What the trials share.
#[derive(Default)]
struct Run {
    machine: Option<Machine>,
    /// Of the document that was tried last.
    site: Option<(Rc<Document>, Site)>,
    tallies: BTreeMap<(Variant, Setting), Tally>,
}

impl Run {
    /// Tries a document; what is missing for it is made first.
    fn check(&mut self, document: &Rc<Document>, setting: Setting, variant: Variant) -> Result<()> {
        let machine = match &mut self.machine {
            Some(machine) => machine,
            None => self.machine.insert(Machine::start()?),
        };
        self.site.take_if(|(other, _)| !Rc::ptr_eq(other, document));
        let (_, site) = match &mut self.site {
            Some(site) => site,
            None => self.site.insert((Rc::clone(document), Site::new(document, &machine.cgroup)?)),
        };
        let (tally, result) = check(machine, site, document, setting, Path::new(ACTOR));
        self.tallies.entry((variant, setting)).or_default().add(&tally);
        result
    }
}
