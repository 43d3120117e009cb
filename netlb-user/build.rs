//! Builds the kernel object with the nightly toolchain and hands it to `bpf::object`, so that one binary is all there is to install.
//!
//! `NETLB_NIGHTLY` names the toolchain (default `nightly`). `AYA_BUILD_SKIP=1` leaves an empty object, for checks on machines without
//! bpf-linker: the loader refuses it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// Set for the second run of this script, see [`quietly`].
const QUIET: &str = "CARGO_TERM_QUIET";

fn main() -> Result<()> {
    if env::var_os(QUIET).is_none() {
        return quietly();
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=NETLB_NIGHTLY");
    if let Some(linker) = find_in_path("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set by cargo")?);
    let kernel = manifest.join("../netlb-ebpf");
    // The contract is part of the object too.
    println!("cargo:rerun-if-changed={}", manifest.join("../netlb-common/src").display());
    let toolchain = env::var("NETLB_NIGHTLY").unwrap_or_else(|_| "nightly".to_owned());
    let root = kernel.to_str().context("the path of netlb-ebpf is not UTF-8")?;
    let package = Package { name: "netlb-ebpf", root_dir: root, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain)).with_context(|| {
        format!(
            "building the kernel object with toolchain {toolchain} failed; `cargo xtask setup` installs what it needs"
        )
    })?;
    stub_if_skipped()
}

/// aya-build turns every line of the inner cargo into a warning of the outer one, which shows them again at each build. So the script runs itself
/// with the inner cargo told to speak of errors only.
fn quietly() -> Result<()> {
    let status = Command::new(env::current_exe()?).env(QUIET, "true").status()?;
    if !status.success() {
        bail!("the build script ended with {status}");
    }
    Ok(())
}

/// `include_bytes_aligned!` needs a file, built or not.
fn stub_if_skipped() -> Result<()> {
    let skipped = env::var_os("AYA_BUILD_SKIP").is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"));
    if skipped {
        let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set by cargo")?);
        fs::write(out.join("netlb-ebpf"), [])?;
    }
    Ok(())
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|p: &PathBuf| Path::is_file(p))
}
