//! Plays a pod or a probe for the test node, for tests; `xtask` does the same behind a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    netlb_testnode::helper::main(std::env::args_os().skip(1))
}
