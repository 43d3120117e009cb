//! The processes of tests over real traffic: pods and probes of the test node, and puppets.

use std::process::ExitCode;

use netlb_tests::puppet;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|role| role == "puppet") {
        return match puppet::play() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("puppet: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    netlb_testnode::helper::main(arguments)
}
