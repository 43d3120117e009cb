//! `netlb`: the one program its users get.

use std::process::ExitCode;

fn main() -> ExitCode {
    netlb_user::cli::main()
}
