//! The cluster's programs: Go and etcd are found or fetched here, the rest is built by [`netlb_testcluster::programs`].

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netlb_testcluster::programs;

use super::go;
use crate::{setup, sh};

/// A part of the programs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// etcd, kube-apiserver, kube-controller-manager
    ControlPlane,
}

/// Installs what is missing and builds the cluster's programs, those that are not there yet.
pub(crate) fn build(only: Option<Part>) -> Result<()> {
    let target = sh::root().join("target");
    etcd(&programs::folder(&target))?;
    let go = go::find(&target.join("go"))?;
    let modules = sh::root().join("tests/cluster/go");
    programs::build(&go, &modules, &target, programs::CONTROL_PLANE)?;
    match only {
        Some(Part::ControlPlane) => Ok(()),
        None => programs::build(&go, &modules, &target, programs::NODES),
    }
}

/// Puts Debian's etcd among the programs. It is unpacked, not installed: the package would start a service.
fn etcd(folder: &Path) -> Result<()> {
    const PACKAGE: &str = "etcd-server";
    let place = folder.join("etcd");
    if !place.is_file() {
        if !sh::installed("apt-get") || !sh::installed("dpkg-deb") {
            bail!("this is no Debian to take etcd from; put the program at {}", place.display());
        }
        setup::say(&format!("fetching etcd (Debian's package {PACKAGE}), unpacked but not installed"));
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let unpacked = folder.with_file_name("etcd.new");
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
        }
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
        // The packages are signed; the user that apt fetches as cannot write below a home folder.
        let fetch = ["download", "-q", "-o", "APT::Sandbox::User=root", PACKAGE];
        if sh::run(Command::new("apt-get").args(fetch).current_dir(&unpacked)).is_err() {
            setup::apt(&["update", "-q"])?;
            sh::run(Command::new("apt-get").args(fetch).current_dir(&unpacked))?;
        }
        let deb = fs::read_dir(&unpacked)
            .ok()
            .and_then(|mut files| files.find_map(|file| Some(file.ok()?.path())))
            .with_context(|| format!("apt-get left no package in {}", unpacked.display()))?;
        sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
        fs::rename(unpacked.join("usr/bin/etcd"), &place)
            .with_context(|| format!("{PACKAGE} holds no usr/bin/etcd"))?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    }
    Ok(())
}
