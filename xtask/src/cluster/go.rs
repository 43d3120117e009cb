//! Go, which builds the cluster's programs: the machine's, else one fetched for this checkout alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{setup, sh};

/// The oldest Go that fetches the version a module asks for.
const OLDEST: (u32, u32) = (1, 21);
/// What is fetched where the machine has none, or an older one (Debian 12 has 1.19): a toolchain from the proxy that the modules come from, too.
const RELEASE: &str = "1.26.6";
const PROXY: &str = "https://proxy.golang.org";
/// The processors it is there for: Rust's name, Go's, and the archive's SHA-256.
const ARCHIVES: [(&str, &str, &str); 2] = [
    ("x86_64", "amd64", "6347bdd1fdc7c659d955d8034cd82ec23a5b776bf48b9dfc3a75088d2dacfe0e"),
    ("aarch64", "arm64", "a2313f15b100a99fd202aaf11adce2cbeec3c684317eef414fc97054dc644d11"),
];

/// The machine's Go if it will do, else one under `folder`.
pub(super) fn find(folder: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/go/bin")]);
    let found = folders.map(|folder| folder.join("go")).find(|go| go.is_file());
    if let Some(go) = found {
        // Outside of any module, so that no other version is fetched to answer.
        let said = sh::read(Command::new(&go).arg("version").current_dir("/")).unwrap_or_default();
        if version(&said).is_some_and(|version| version >= OLDEST) {
            return Ok(go);
        }
        setup::say(&format!("{} is older than {}.{}: {said}", go.display(), OLDEST.0, OLDEST.1));
    }
    fetch(folder)
}

fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn fetch(folder: &Path) -> Result<PathBuf> {
    let Some((_, arch, sha256)) = ARCHIVES.iter().find(|(rust, ..)| *rust == std::env::consts::ARCH) else {
        bail!(
            "there is no Go to fetch for {}; install Go from https://go.dev/dl into /usr/local/go",
            std::env::consts::ARCH
        );
    };
    let name = format!("toolchain@v0.0.1-go{RELEASE}.linux-{arch}");
    let place = folder.join(&name);
    let go = place.join("bin/go");
    if go.is_file() {
        return Ok(go);
    }
    setup::packages(&[("curl", "curl"), ("unzip", "unzip")])?;
    setup::say(&format!("fetching Go {RELEASE} into {}", place.display()));
    let new = folder.join("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let archive = new.join("go.zip");
    let address = format!("{PROXY}/golang.org/toolchain/@v/v0.0.1-go{RELEASE}.linux-{arch}.zip");
    sh::run(Command::new("curl").args(["-sSfL", "--retry", "3", "-o"]).arg(&archive).arg(&address))?;
    let sum = sh::read(Command::new("sha256sum").arg(&archive)).unwrap_or_default();
    if sum.split_whitespace().next() != Some(*sha256) {
        bail!(
            "{address} is not what it was: its SHA-256 is {sum}, and was {sha256}; see what stands between this machine and the proxy"
        );
    }
    sh::run(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(&new))?;
    let unpacked = new.join("golang.org").join(&name);
    // The archives of modules hold no permissions.
    for programs in [unpacked.join("bin"), unpacked.join(format!("pkg/tool/linux_{arch}"))] {
        let files = fs::read_dir(&programs).with_context(|| format!("{address} holds no {}", programs.display()))?;
        for file in files {
            let file = file.with_context(|| format!("cannot read {}", programs.display()))?.path();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} a program", file.display()))?;
        }
    }
    fs::rename(&unpacked, &place).with_context(|| format!("cannot move {}", unpacked.display()))?;
    fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    Ok(go)
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
