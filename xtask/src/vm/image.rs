//! The machine's whole file system, one cpio archive that the kernel unpacks into memory: busybox, the modules that networking needs, and the
//! test programs with what they start, each under the path that it has on this machine.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::packages::Package;
use super::{Job, Kernel};
use crate::sh;
use crate::test::Program;

/// What the first process runs.
const INIT: &str = include_str!("init.sh");
/// Folders and files below a kernel's `kernel` folder that are taken along.
const MODULES: [&str; 6] = ["net", "lib", "crypto", "arch/x86/crypto", "drivers/net/veth", "drivers/net/dummy"];
/// Programs of this machine that tests start.
const PROGRAMS: [&str; 3] = ["ip", "nft", "tc"];
/// Files that tests read while they run.
const FILES: [&str; 1] = ["tests/lacks.txt"];

/// Builds the archive; the one of the run before is replaced.
pub(super) fn build(kernel: Kernel, package: &Package, jobs: &[(&Job, &Program)]) -> Result<PathBuf> {
    let root = kernel.folder().join("image");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for folder in ["bin", "sbin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("cannot make {}", root.display()))?;
    }
    let image = Image { root };
    image.modules(package)?;
    for program in PROGRAMS.into_iter().chain(["busybox"]) {
        image.program(&find(program)?)?;
    }
    std::os::unix::fs::symlink(find("busybox")?, image.root.join("bin/sh")).context("cannot link the shell")?;
    for built in ["target/release/netlb", "target/debug/netlb-actor"] {
        image.stripped(&sh::root().join(built))?;
    }
    let mut tests = String::new();
    for (job, program) in jobs {
        image.stripped(&program.executable)?;
        tests += &line(job, program);
    }
    for file in FILES {
        image.file(&sh::root().join(file))?;
    }
    image.write("tests", &tests, 0o644)?;
    image.write("init", &INIT.replace("BUSYBOX", &find("busybox")?.to_string_lossy()), 0o755)?;
    image.archive(&kernel.folder().join("initramfs"))
}

/// One job in the list that `init.sh` walks: tier, folder, program, filters.
fn line(job: &Job, program: &Program) -> String {
    let filters = job.filters.join("|");
    format!("{}|{}|{}|{filters}\n", job.tier, program.package.display(), program.executable.display())
}

struct Image {
    root: PathBuf,
}

impl Image {
    /// Where a file of this machine is in the image.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.root.join(path.strip_prefix("/").with_context(|| format!("{} is relative", path.display()))?);
        let folder = place.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(place)
    }

    fn file(&self, path: &Path) -> Result<()> {
        fs::copy(path, self.place(path)?).with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context("cannot set a file's mode")
    }

    /// A program and the libraries it is linked with.
    fn program(&self, path: &Path) -> Result<()> {
        self.file(path)?;
        self.libraries(path)
    }

    /// The same without what only debuggers read, nine tenths of a test program.
    fn stripped(&self, path: &Path) -> Result<()> {
        sh::run(Command::new("strip").arg("--strip-debug").arg(path).arg("-o").arg(self.place(path)?))?;
        self.libraries(path)
    }

    fn libraries(&self, program: &Path) -> Result<()> {
        // A static program has none: ldd then fails.
        let listing = sh::read(Command::new("ldd").arg(program)).unwrap_or_default();
        libraries(&listing)
            .iter()
            .filter(|library| !self.root.join(&library[1..]).exists())
            .try_for_each(|library| self.file(Path::new(library)))
    }

    fn modules(&self, package: &Package) -> Result<()> {
        let place = self.root.join("lib/modules").join(&package.release);
        for part in MODULES {
            // Paths from `kernel` on stay what they are: indexes and dependencies name them.
            let mut copy = Command::new("sh");
            copy.arg("-c")
                .arg("mkdir -p \"$1\" && cp -r --parents kernel/\"$2\"* \"$1\"")
                .arg("sh")
                .arg(&place)
                .arg(part);
            sh::run(copy.current_dir(&package.modules))?;
        }
        for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            fs::copy(package.modules.join(list), place.join(list))
                .with_context(|| format!("the kernel has no {list}"))?;
        }
        sh::run(Command::new("find").arg(&place).args(["-name", "*.xz", "-exec", "xz", "-d", "{}", "+"]))?;
        sh::run(Command::new("busybox").args(["depmod", "-b"]).arg(&self.root).arg(&package.release))
    }

    fn archive(&self, path: &Path) -> Result<PathBuf> {
        let list = sh::read(Command::new("find").arg(".").current_dir(&self.root)).context("cannot list the image")?;
        let out = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut cpio = Command::new("cpio");
        cpio.args(["--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(&self.root);
        let mut child = cpio.stdin(Stdio::piped()).stdout(out).spawn().context("cannot start cpio")?;
        child.stdin.take().context("cpio has no input")?.write_all(list.as_bytes()).context("cannot write to cpio")?;
        if !child.wait().context("cannot wait for cpio")?.success() {
            bail!("cpio failed on {}", self.root.display());
        }
        Ok(path.to_owned())
    }
}

/// Where a program of this machine is.
fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()]);
    let found = folders.map(|folder| folder.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is not installed; `cargo xtask setup` installs it"))
}

/// The paths in what ldd prints.
fn libraries(listing: &str) -> Vec<String> {
    let words = listing.lines().flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_has_a_path() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f)\n\t\
                       /lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(listing), ["/lib/x86_64-linux-gnu/libnftables.so.1", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn a_job_is_one_line() {
        let job = Job { tier: "net", filters: &["a pod", "the node"] };
        let program = Program {
            tier: "net".into(),
            name: "tests (net)".into(),
            package: "/n/tests".into(),
            executable: "/n/target/debug/deps/net-1".into(),
        };
        assert_eq!(line(&job, &program), "net|/n/tests|/n/target/debug/deps/net-1|a pod|the node\n");
    }
}
