//! Builds the benchmark's kernel object with the nightly toolchain (`NETLB_NIGHTLY`, default `nightly`).

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=NETLB_NIGHTLY");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set by cargo")?);
    let kernel = manifest.join("ebpf");
    let root = kernel.to_str().context("the path of netlb-bench-ebpf is not UTF-8")?;
    let package = Package { name: "netlb-bench-ebpf", root_dir: root, ..Package::default() };
    let toolchain = env::var("NETLB_NIGHTLY").unwrap_or_else(|_| "nightly".to_owned());
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain)).with_context(|| {
        format!(
            "building the benchmark's kernel object with toolchain {toolchain} failed; `cargo xtask setup` installs what it needs"
        )
    })?;
    stub_if_skipped()
}

/// `include_bytes_aligned!` needs a file, built or not.
fn stub_if_skipped() -> Result<()> {
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")) {
        let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set by cargo")?);
        std::fs::write(out.join("netlb-bench-ebpf"), [])?;
    }
    Ok(())
}
