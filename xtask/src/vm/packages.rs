//! A Debian release's kernel: found and fetched by apt with a state of its own, so that the machine's is left alone; kept under target/kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::{setup, sh};

/// The package that depends on a release's default kernel.
const META: &str = "linux-image-amd64";
/// Debian's archive keys, which sign the lists of packages.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
pub(super) struct Package {
    /// What boots.
    pub(super) image: PathBuf,
    /// The folder `lib/modules/<release>`.
    pub(super) modules: PathBuf,
    /// As `uname -r` will print it.
    pub(super) release: String,
}

/// The kernel that was fetched last, or else the newest one of its release.
pub(super) fn fetch(kernel: Kernel) -> Result<Package> {
    let folder = kernel.folder();
    if let Some(package) = unpacked(&folder.join("root")) {
        return Ok(package);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernels here are built for x86_64, this machine is {}", std::env::consts::ARCH);
    }
    if !sh::installed("apt-get") || !Path::new(KEYS).is_file() {
        bail!(
            "fetching Debian's kernels needs apt-get and {KEYS} (package debian-archive-keyring); install them by hand"
        );
    }
    let apt = Apt::new(kernel, &folder.join("apt"))?;
    setup::say(&format!("looking up {}'s kernel {kernel}", kernel.suite()));
    apt.run("apt-get", &["update", "-q"], &folder)?;
    let listing = sh::read(apt.command("apt-cache").args(["depends", META]))
        .with_context(|| format!("{} has no package {META}", kernel.suite()))?;
    let name = default_kernel(&listing).with_context(|| format!("{META} depends on no kernel:\n{listing}"))?;
    setup::say(&format!("fetching {name} of {}, about 100 MB", kernel.suite()));
    apt.run("apt-get", &["download", "-q", name], &folder)?;
    let deb = only(&folder, ".deb").with_context(|| format!("apt-get left no package in {}", folder.display()))?;

    // Unpacked beside its place: a half unpacked kernel is never taken for one.
    let fresh = folder.join("root.new");
    remove(&fresh)?;
    sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&fresh))?;
    fs::rename(&fresh, folder.join("root")).context("cannot put the unpacked kernel in its place")?;
    fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
    unpacked(&folder.join("root")).with_context(|| format!("{name} holds no kernel with modules"))
}

/// What a package unpacked to; trixie has its modules under `usr`.
fn unpacked(root: &Path) -> Option<Package> {
    let image = only(&root.join("boot"), "vmlinuz-")?;
    let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
    let modules = ["lib", "usr/lib"].map(|lib| root.join(lib).join("modules").join(&release));
    let modules = modules.into_iter().find(|folder| folder.is_dir())?;
    Some(Package { image, modules, release })
}

/// The kernel in what `apt-cache depends` prints.
fn default_kernel(listing: &str) -> Option<&str> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
}

/// The file of a folder whose name has `part` in it.
fn only(folder: &Path, part: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(part)))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// apt with lists and a cache of one release.
struct Apt(Vec<String>);

impl Apt {
    fn new(kernel: Kernel, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let (suite, sources) = (kernel.suite(), folder.join("sources.list"));
        let text = [("debian", suite.to_owned()), ("debian-security", format!("{suite}-security"))]
            .map(|(archive, suite)| format!("deb [signed-by={KEYS}] http://deb.debian.org/{archive} {suite} main\n"));
        fs::write(&sources, text.concat()).with_context(|| format!("cannot write {}", sources.display()))?;
        let folder = folder.display();
        Ok(Apt(vec![
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            "Acquire::Languages=none".to_owned(),
            // The packages are signed; the user that apt fetches as cannot write below a home folder.
            "APT::Sandbox::User=root".to_owned(),
        ]))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.0 {
            command.args(["-o", option]);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str], folder: &Path) -> Result<()> {
        sh::run(self.command(program).args(arguments).current_dir(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_names_the_kernel() {
        let listing = "linux-image-amd64\n  Depends: linux-image-6.12.117+deb13-amd64\n  Suggests: firmware\n";
        assert_eq!(default_kernel(listing), Some("linux-image-6.12.117+deb13-amd64"));
        assert_eq!(default_kernel("linux-image-amd64\n"), None);
    }

    #[test]
    fn a_kernel_is_known_by_its_image_and_its_modules() {
        for lib in ["lib", "usr/lib"] {
            let root = tempfile::tempdir().unwrap();
            let release = "5.10.0-46-amd64";
            fs::create_dir_all(root.path().join("boot")).unwrap();
            fs::write(root.path().join("boot").join(format!("vmlinuz-{release}")), "").unwrap();
            assert!(unpacked(root.path()).is_none(), "no modules");
            fs::create_dir_all(root.path().join(lib).join("modules").join(release)).unwrap();
            assert_eq!(unpacked(root.path()).unwrap().release, release);
        }
    }
}
