//! Builds the benchmark's kernel object, and the production object it measures, with the nightly toolchain (`NETLB_NIGHTLY`, default `nightly`).

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=NETLB_NIGHTLY");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set by cargo")?);
    let folder = |path: &str| -> Result<String> {
        Ok(manifest.join(path).to_str().context("the path of the workspace is not UTF-8")?.to_owned())
    };
    let (bench, production) = (folder("ebpf")?, folder("../../netlb-ebpf")?);
    // The contract is part of the production object.
    println!("cargo:rerun-if-changed={}", folder("../../netlb-common/src")?);
    let packages = [
        Package { name: "netlb-bench-ebpf", root_dir: &bench, ..Package::default() },
        Package { name: "netlb-ebpf", root_dir: &production, ..Package::default() },
    ];
    let toolchain = env::var("NETLB_NIGHTLY").unwrap_or_else(|_| "nightly".to_owned());
    aya_build::build_ebpf(packages, Toolchain::Custom(&toolchain)).with_context(|| {
        format!(
            "building the kernel objects with toolchain {toolchain} failed; `cargo xtask setup` installs what it needs"
        )
    })
}
