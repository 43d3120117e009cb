//! The cluster's programs: Go and etcd are found or fetched here, the rest is built by [`netlb_testcluster::programs`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netlb_testcluster::programs;

use crate::{setup, sh};

/// The oldest Go that fetches the version a module asks for.
const GO: (u32, u32) = (1, 21);

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
    let go = go()?;
    let modules = sh::root().join("tests/cluster/go");
    programs::build(&go, &modules, &target, programs::CONTROL_PLANE)?;
    match only {
        Some(Part::ControlPlane) => Ok(()),
        None => programs::build(&go, &modules, &target, programs::NODES),
    }
}

/// The machine's Go, else Debian's.
fn go() -> Result<PathBuf> {
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/go/bin")]);
        folders.map(|folder| folder.join("go")).find(|go| go.is_file())
    };
    let go = match find() {
        Some(go) => go,
        None => {
            setup::packages(&[("go", "golang-go")])?;
            find().context("the package golang-go brought no program `go`")?
        }
    };
    // Outside of any module, so that no other version is fetched to answer.
    let said = sh::read(Command::new(&go).arg("version").current_dir("/")).unwrap_or_default();
    match version(&said) {
        Some(found) if found >= GO => Ok(go),
        _ => bail!(
            "{} is too old ({said}): the cluster's programs need Go {}.{} or newer, which fetches the version they ask for; install one from https://go.dev/dl into /usr/local/go",
            go.display(),
            GO.0,
            GO.1
        ),
    }
}

fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
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

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn go_says_its_version() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.19 linux/amd64"), Some((1, 19)));
        assert!(version("go version go1.26rc1 linux/amd64").is_none());
        assert_eq!(version(""), None);
    }
}
