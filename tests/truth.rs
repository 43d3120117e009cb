//! kube-proxy's truth tables of packet flows, against the loaded programs and real sockets: with kube-proxy's settings every row holds, with
//! netlb's defaults at most the masquerade towards backends on this node differs.
//!
//! `NETLB_TRUTH_DIR` names another folder of documents.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::truth::document::{Document, load};
use netlb_tests::truth::machine::Machine;
use netlb_tests::truth::settings::Setting;
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
    let machine = RefCell::new(None);
    let tallies = RefCell::new(Tallies::new());
    let mut trials = Vec::new();
    for variant in Variant::ALL {
        let documents: Vec<Document> = documents.iter().filter_map(|document| variant.of(document)).collect();
        for setting in Setting::ALL {
            for document in documents.clone() {
                let (machine, tallies) = (&machine, &tallies);
                let name = format!("{}, {}: {}", setting.name(), variant.name(), document.name);
                trials.push(Trial::new(name, move || {
                    run(machine, tallies, &document, setting, variant).map_err(|error| format!("{error:#}"))
                }));
            }
        }
    }
    let code = harness::run(need(&[Need::Root]), trials);
    for variant in Variant::ALL {
        for setting in Setting::ALL {
            if let Some(tally) = tallies.borrow().get(&(variant, setting)) {
                println!("{}, {}: {tally}", setting.name(), variant.name());
            }
        }
    }
    code
}

type Tallies = BTreeMap<(Variant, Setting), Tally>;

/// Runs a document on the machine, which the first one starts.
fn run(
    machine: &RefCell<Option<Machine>>,
    tallies: &RefCell<Tallies>,
    document: &Document,
    setting: Setting,
    variant: Variant,
) -> anyhow::Result<()> {
    let mut machine = machine.borrow_mut();
    let machine = match machine.as_mut() {
        Some(machine) => machine,
        None => machine.insert(Machine::start()?),
    };
    let (tally, result) = check(machine, document, setting, Path::new(ACTOR));
    tallies.borrow_mut().entry((variant, setting)).or_default().add(&tally);
    result
}
