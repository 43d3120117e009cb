//! Real traffic through the real agent: pods and nodes reach Services over both roads, on both kinds of pod network.

use std::cell::LazyCell;
use std::process::ExitCode;
use std::rc::Rc;

use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::traffic::{CASES, WORLD};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for style in Style::ALL {
        // Made for the first trial that runs, gone with the last one that holds it.
        let rig = Rc::new(LazyCell::new(move || Rig::start(style, ACTOR, WORLD)));
        for case in CASES.iter().filter(|case| (case.on)(&style)) {
            let rig = Rc::clone(&rig);
            trials.push(Trial::new(format!("{}: {}", style.name(), case.name), move || {
                let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
                (case.run)(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
            }));
        }
    }
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}
