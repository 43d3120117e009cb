//! `cargo xtask test --kernel 6.1`: tests inside a virtual machine that runs a kernel of Debian's.
//!
//! No disk and no network: kernel, modules, tests and what they start are one initramfs, results come over the serial console. The machine
//! is emulated in software, so it shows whether something works, never how fast.

mod guest;
mod image;
mod packages;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::test::{Outcome, Program};
use crate::{setup, sh};

/// What making and running the machine needs, and the Debian package each is in.
const TOOLS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dpkg-deb", "dpkg"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// A kernel that the tests can be tried on, each the default of one Debian release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// bullseye's: the oldest that netlb runs on
    #[value(name = "5.10")]
    V5_10,
    /// bookworm's: no TCX yet
    #[value(name = "6.1")]
    V6_1,
    /// trixie's
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// The Debian release whose default kernel it is.
    fn suite(self) -> &'static str {
        match self {
            Kernel::V5_10 => "bullseye",
            Kernel::V6_1 => "bookworm",
            Kernel::V6_12 => "trixie",
        }
    }

    /// Everything that is kept of it.
    fn folder(self) -> PathBuf {
        sh::root().join("target/kernels").join(self.to_string())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernel::V5_10 => "5.10",
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        })
    }
}

/// A tier as the machine runs it.
struct Job {
    tier: &'static str,
    /// Words of which a test's name must contain one; no words, no condition.
    filters: &'static [&'static str],
}

/// Every program, all packet cases, real connections in each style of pod network through the agent, and how it attaches without TCX.
const JOBS: [Job; 4] = [
    Job { tier: "load", filters: &[] },
    Job { tier: "kernel", filters: &[] },
    Job {
        tier: "net",
        filters: &["every port of every Service answers a pod", "the same from the node itself", "beyond the node"],
    },
    Job { tier: "restart", filters: &["filters of ours"] },
];

/// The tiers that run in the machine.
pub(crate) fn tiers() -> impl Iterator<Item = &'static str> {
    JOBS.iter().map(|job| job.tier)
}

/// Boots the machine and runs the tiers of `programs` in it.
pub(crate) fn run(kernel: Kernel, programs: &[&Program]) -> Result<BTreeMap<String, Outcome>> {
    setup::packages(&TOOLS)?;
    let package = packages::fetch(kernel)?;
    let jobs: Vec<(&Job, &Program)> = JOBS
        .iter()
        .filter_map(|job| programs.iter().find(|program| program.tier == job.tier).map(|program| (job, *program)))
        .collect();
    let image = image::build(kernel, &package, &jobs)?;
    guest::run(kernel, &package.image, &image, &jobs)
}
