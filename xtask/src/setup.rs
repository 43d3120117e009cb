//! Installing what is missing, and saying so. What is there is left alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{sh, sudo};

/// The compiler that the kernel object is built with, by the date of its last commit…
const NIGHTLY_COMMIT_DATE: &str = "2026-05-19";
/// …which may be what is installed under this name, the one that build scripts take unless told otherwise…
pub(crate) const DEFAULT_NIGHTLY: &str = "nightly";
/// …or else is published the day after, under this name.
const NIGHTLY_NAME: &str = "nightly-2026-05-20";
/// The linker that turns the kernel object's bitcode into BPF; its LLVM must not be older than the compiler's.
const BPF_LINKER: &str = "0.10.4";
const BPF_LINKER_FEATURES: &str = "rust-llvm-22";
/// Programs that runs and tests start, and the Debian package each is in.
const PROGRAMS: [(&str, &str); 5] =
    [("nft", "nftables"), ("curl", "curl"), ("iperf3", "iperf3"), ("ip", "iproute2"), ("llvm-objdump", "llvm")];

/// What the other commands need to know of the tools.
pub(crate) struct Tools {
    /// The nightly toolchain's name; it goes to build scripts as `NETLB_NIGHTLY`.
    pub(crate) nightly: String,
}

/// Makes sure that everything is installed.
pub(crate) fn setup() -> Result<Tools> {
    if !sh::installed("rustup") {
        bail!("rustup is not installed; the kernel object needs a nightly toolchain: see https://rustup.rs");
    }
    let nightly = nightly()?;
    rust_src(&nightly)?;
    lint_tools()?;
    bpf_linker()?;
    packages(&PROGRAMS)?;
    Ok(Tools { nightly })
}

fn nightly() -> Result<String> {
    for name in [DEFAULT_NIGHTLY, NIGHTLY_NAME] {
        let version = sh::read(Command::new("rustc").arg(format!("+{name}")).arg("-vV")).unwrap_or_default();
        if commit_date(&version) == Some(NIGHTLY_COMMIT_DATE) {
            return Ok(name.to_owned());
        }
    }
    say(&format!("installing the toolchain {NIGHTLY_NAME}"));
    sh::run(Command::new("rustup").args([
        "toolchain",
        "install",
        NIGHTLY_NAME,
        "--profile",
        "minimal",
        "--no-self-update",
    ]))?;
    Ok(NIGHTLY_NAME.to_owned())
}

fn commit_date(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("commit-date: "))
}

fn rust_src(nightly: &str) -> Result<()> {
    let sysroot =
        sh::read(Command::new("rustc").arg(format!("+{nightly}")).args(["--print", "sysroot"])).unwrap_or_default();
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        say(&format!("adding rust-src to {nightly}"));
        sh::run(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", nightly]))?;
    }
    Ok(())
}

fn lint_tools() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if sh::read(sh::cargo().args([tool, "--version"])).is_none() {
            say(&format!("adding {component}"));
            sh::run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

fn bpf_linker() -> Result<()> {
    let version = sh::read(Command::new("bpf-linker").arg("--version")).unwrap_or_default();
    if version.split_whitespace().nth(1) == Some(BPF_LINKER) {
        return Ok(());
    }
    say(&format!("installing bpf-linker {BPF_LINKER}, which takes a few minutes"));
    sh::run(sh::cargo().args([
        "install",
        &format!("bpf-linker@{BPF_LINKER}"),
        "--no-default-features",
        "--features",
        BPF_LINKER_FEATURES,
        "--force",
    ]))
}

/// Makes sure that programs, each with the Debian package it is in, are installed.
pub(crate) fn packages(programs: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !sh::installed(program)).map(|(_, package)| *package).collect();
    install(missing)
}

/// Installs Debian packages.
pub(crate) fn install(missing: Vec<&str>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !sh::installed("apt-get") {
        bail!("these are missing and this is no Debian to install them on: {list}; install them by hand");
    }
    if !sudo::is_root() && !sh::installed("sudo") {
        bail!("these packages are missing: {list}; as root, do `apt-get install {list}`");
    }
    say(&format!("installing the packages {list}"));
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(missing);
    apt(&install)
}

/// Runs apt-get as root, without questions.
pub(crate) fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(if sudo::is_root() { "env" } else { "sudo" });
    command.args((!sudo::is_root()).then_some("env"));
    command.arg("DEBIAN_FRONTEND=noninteractive").arg("apt-get").args(arguments);
    sh::run(&mut command)
}

/// Says what is being installed.
pub(crate) fn say(what: &str) {
    println!("set-up: {what}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_compiler_is_known_by_its_commit_date() {
        let version = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\ncommit-date: 2026-05-19\nhost: x\n";
        assert_eq!(super::commit_date(version), Some("2026-05-19"));
        assert_eq!(super::commit_date("rustc 1.97.0-nightly\ncommit-date: unknown\n"), Some("unknown"));
        assert_eq!(super::commit_date(""), None);
    }
}
