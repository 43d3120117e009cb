//! Real traffic from outside through two nodes with an agent each: NodePorts, paths, fragments, health checks, rolling updates.

use std::cell::LazyCell;
use std::process::ExitCode;
use std::rc::Rc;

use netlb_tests::arrivals::{CASES, WORLD};
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

fn main() -> ExitCode {
    let mut trials = Vec::new();
    // Either pod network and either road once; the others differ inside of a node only.
    for style in [Style::ALL[0], Style::ALL[4]] {
        // Made for the first trial that runs, gone with the last one that holds it.
        let rig = Rc::new(LazyCell::new(move || Rig::start_nodes(style, 2, ACTOR, WORLD)));
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
