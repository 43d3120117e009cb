//! The cluster's programs: upstream's own, built from the Go modules beside this crate, kept in a folder until their module
//! changes.
//!
//! Go's own cache does the rest: a program of an unchanged module is linked again within seconds, in any folder.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The release of Kubernetes, as its programs report it. `go.mod` fixes it.
pub const KUBERNETES: &str = "v1.36.3";
/// Upstream's end-to-end tests.
pub const E2E: &str = "e2e.test";

/// The programs that the API needs, without a node: enough for whoever only watches it.
pub const CONTROL_PLANE: &[Program] =
    &[Program::kubernetes("cmd/kube-apiserver"), Program::kubernetes("cmd/kube-controller-manager")];

/// All others.
pub const NODES: &[Program] = &[
    Program::runtime("github.com/containerd/containerd/v2/cmd/containerd"),
    Program::runtime("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    Program::runtime("github.com/containerd/containerd/v2/cmd/ctr"),
    Program::runtime("github.com/coredns/coredns"),
    Program::kubernetes("cmd/kube-scheduler"),
    Program::kubernetes("cmd/kubelet"),
    Program::kubernetes("cmd/kube-proxy"),
    Program::kubernetes("cmd/kubectl"),
    Program::kubernetes("test/images/agnhost"),
    Program::kubernetes("test/images/regression-issue-74839"),
    Program { module: KUBERNETES_MODULE, package: "github.com/onsi/ginkgo/v2/ginkgo", parent: "", kind: Kind::Main },
    Program { module: KUBERNETES_MODULE, package: "test/e2e", parent: "k8s.io/kubernetes/", kind: Kind::Tests },
];

/// The folder of the module with Kubernetes, among the modules.
const KUBERNETES_MODULE: &str = "kubernetes";
/// The folder of the module with what Kubernetes runs on.
const RUNTIME_MODULE: &str = "runtime";
/// How often a build says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

/// A Go program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    module: &'static str,
    parent: &'static str,
    package: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Main,
    Tests,
}

impl Program {
    const fn kubernetes(package: &'static str) -> Self {
        Self { module: KUBERNETES_MODULE, parent: "k8s.io/kubernetes/", package, kind: Kind::Main }
    }

    const fn runtime(package: &'static str) -> Self {
        Self { module: RUNTIME_MODULE, parent: "", package, kind: Kind::Main }
    }

    /// Its file's name: the last part of its package's, as Go names programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Main => self.package.rsplit('/').next().unwrap_or(self.package),
            Kind::Tests => E2E,
        }
    }

    fn import_path(&self) -> String {
        format!("{}{}", self.parent, self.package)
    }
}

/// Where programs are kept below a target folder.
#[must_use]
pub fn folder(target: &Path) -> PathBuf {
    target.join("cluster/bin")
}

/// Makes sure that `programs` are in [`folder`] of `target`, built by the Go command `go` from the module folders in
/// `modules`. Says what it builds, how far it is, and how long it took. Two builds into one folder wait for each other.
///
/// # Errors
/// When Go refuses, with what it said.
pub fn build(go: &Path, modules: &Path, target: &Path, programs: &[Program]) -> Result<()> {
    let folder = folder(target);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(folder.with_file_name("lock")).context("cannot make the lock of the programs' folder")?;
    lock.lock().context("cannot lock the programs' folder")?;
    for module in [RUNTIME_MODULE, KUBERNETES_MODULE] {
        let wanted: Vec<&Program> = programs.iter().filter(|program| program.module == module).collect();
        build_module(go, &modules.join(module), module, &folder, &wanted)?;
    }
    Ok(())
}

fn build_module(go: &Path, module: &Path, name: &str, folder: &Path, programs: &[&Program]) -> Result<()> {
    let key = key(module)?;
    let key_file = folder.join(format!("{name}.built-from"));
    if fs::read_to_string(&key_file).ok().as_deref() != Some(&key) {
        empty(folder, name)?;
    }
    let missing: Vec<&Program> =
        programs.iter().filter(|program| !folder.join(program.name()).is_file()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Go writes a program piece by piece: it is moved to its place once it is whole.
    let fresh = folder.join("new");
    remove(&fresh)?;
    fs::create_dir(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    fs::write(&key_file, key).with_context(|| format!("cannot write {}", key_file.display()))?;
    let (mains, tests): (Vec<&Program>, Vec<&Program>) =
        missing.into_iter().partition(|program| program.kind == Kind::Main);
    if !mains.is_empty() {
        let packages: Vec<String> = mains.iter().map(|program| program.import_path()).collect();
        compile(go, module, &mains, |command| {
            command.arg("build").args(FLAGS).args(["-ldflags", &linker_flags(), "-o"]).arg(&fresh).args(packages)
        })?;
    }
    for program in &tests {
        // What the tests import comes first, since only `go build` says how far it is.
        let imports = imports(go, module, &program.import_path())?;
        compile(go, module, std::slice::from_ref(program), |command| command.arg("build").args(FLAGS).args(imports))?;
        compile(go, module, std::slice::from_ref(program), |command| {
            command.args(["test", "-c", "-vet=off"]).args(FLAGS).args(["-ldflags", &linker_flags(), "-o"]);
            command.arg(fresh.join(program.name())).arg(program.import_path())
        })?;
    }
    for program in mains.iter().chain(&tests) {
        fs::rename(fresh.join(program.name()), folder.join(program.name()))
            .with_context(|| format!("Go left no {} in {}", program.name(), fresh.display()))?;
    }
    remove(&fresh)
}

/// Flags of every build. No path of this machine gets into a program, so Go's cache serves all work trees.
const FLAGS: [&str; 3] = ["-v", "-trimpath", "-buildvcs=false"];

/// No symbols for debuggers, and the version that a release build would have.
fn linker_flags() -> String {
    let mut flags = "-s -w".to_owned();
    let mut numbers = KUBERNETES.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", KUBERNETES), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// What a module's programs follow from: its files and the flags.
fn key(module: &Path) -> Result<String> {
    let mut key = format!("{FLAGS:?} {}\n", linker_flags());
    for file in ["go.mod", "go.sum"] {
        let path = module.join(file);
        key.push_str(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(key)
}

/// Runs Go, which names each package that it compiles, and says now and then how far it is.
fn compile(
    go: &Path,
    module: &Path,
    programs: &[&Program],
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<()> {
    let names = programs.iter().map(|program| program.name()).collect::<Vec<_>>().join(", ");
    println!(
        "building {names} from Go modules; about twelve minutes for all on two free cores, seconds if Go has it cached"
    );
    let mut command = Command::new(go);
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "auto").env("GOWORK", "off");
    arguments(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", go.display()))?;
    let said = watch(child.stderr.take().context("Go has no error output")?, started);
    let status = child.wait().context("cannot wait for Go")?;
    if !status.success() {
        bail!("Go cannot build {names} ({status}):\n{}", said.mistakes.join("\n"));
    }
    println!("built {names} in {} s; {} packages were compiled", started.elapsed().as_secs(), said.compiled);
    Ok(())
}

/// The packages that the tests of `package` import.
fn imports(go: &Path, module: &Path, package: &str) -> Result<Vec<String>> {
    let mut command = Command::new(go);
    command.current_dir(module).args(["list", "-f", "{{join .TestImports \"\\n\"}}", package]);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", go.display()))?;
    if !output.status.success() {
        bail!("Go cannot list {package}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// What a build said.
#[derive(Default)]
struct Said {
    compiled: u32,
    /// What is not a package's name: downloads, and mistakes.
    mistakes: Vec<String>,
}

/// Reads what Go prints to its end.
fn watch(output: impl Read, started: Instant) -> Said {
    let mut said = Said::default();
    let mut reported = started;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if line.contains(' ') {
            said.mistakes.push(line);
            continue;
        }
        said.compiled += 1;
        if reported.elapsed() >= PROGRESS {
            reported = Instant::now();
            println!("  {} s: {} packages compiled, now {line}", started.elapsed().as_secs(), said.compiled);
        }
    }
    said
}

/// Removes a module's programs, which were built from other versions.
fn empty(folder: &Path, module: &str) -> Result<()> {
    for program in CONTROL_PLANE.iter().chain(NODES).filter(|program| program.module == module) {
        match fs::remove_file(folder.join(program.name())) {
            Ok(()) => println!("{} is built anew: its versions or flags have changed", program.name()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove the old {}", program.name())),
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A `go` that writes down how it was called and makes what it was asked for.
    fn fake(folder: &Path) -> PathBuf {
        let go = folder.join("go");
        let script = r#"#!/bin/sh
[ "$1" = list ] && echo fmt && exit
echo "$@" >>CALLS
out=; for word; do [ "$last" = -o ] && out=$word; last=$word; done
if [ -d "$out" ]; then for word; do case $word in *.*/*/*) : >"$out/${word##*/}";; esac; done; elif [ -n "$out" ]; then : >"$out"; fi
echo k8s.io/some/package >&2
"#;
        fs::write(&go, script.replace("CALLS", &folder.join("calls").display().to_string())).unwrap();
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
        go
    }

    fn calls(folder: &Path) -> usize {
        fs::read_to_string(folder.join("calls")).unwrap_or_default().lines().count()
    }

    #[test]
    fn programs_are_built_once_and_anew_when_the_module_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (modules, target) = (folder.path().join("modules"), folder.path().join("target"));
        for name in ["kubernetes", "runtime"] {
            fs::create_dir_all(modules.join(name)).unwrap();
            fs::write(modules.join(name).join("go.mod"), "module a").unwrap();
            fs::write(modules.join(name).join("go.sum"), "").unwrap();
        }
        let go = fake(folder.path());
        let made = |name: &str| target.join("cluster/bin").join(name).is_file();
        let programs = [Program::kubernetes("cmd/kubectl"), NODES[0], NODES[NODES.len() - 1]];
        fs::create_dir_all(target.join("cluster/bin")).unwrap();
        fs::write(target.join("cluster/bin/etcd"), "").unwrap();
        build(&go, &modules, &target, &programs).unwrap();
        assert!(made("kubectl") && made("containerd") && made("e2e.test"));
        assert_eq!(calls(folder.path()), 4);
        build(&go, &modules, &target, &programs).unwrap();
        assert_eq!(calls(folder.path()), 4, "all is there");
        fs::remove_file(target.join("cluster/bin/kubectl")).unwrap();
        build(&go, &modules, &target, &programs).unwrap();
        assert_eq!(calls(folder.path()), 5, "one was missing");
        fs::write(modules.join("kubernetes/go.sum"), "changed").unwrap();
        build(&go, &modules, &target, &programs[..1]).unwrap();
        assert!(!made("e2e.test"), "built from other versions");
        assert!(made("containerd") && made("etcd"), "of another module, and of none");
    }

    #[test]
    fn the_stamped_version_is_the_one_that_go_mod_names() {
        let module = include_str!("../go/kubernetes/go.mod");
        assert!(module.contains(&format!("k8s.io/kubernetes {KUBERNETES}")));
        let staging = format!("=> k8s.io/api v0.{}", KUBERNETES.trim_start_matches("v1."));
        assert!(module.contains(&staging), "{staging}");
        assert!(linker_flags().contains("-X k8s.io/component-base/version.gitMinor=36"));
        for program in CONTROL_PLANE.iter().chain(NODES) {
            let tools = match program.module {
                RUNTIME_MODULE => include_str!("../go/runtime/tools.go"),
                _ => include_str!("../go/kubernetes/tools.go"),
            };
            assert!(tools.contains(&format!("\"{}\"", program.import_path())), "{program:?}");
        }
    }
}
