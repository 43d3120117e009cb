//! The images that pods are made of: Debian's base system with the tools that upstream's tests call, and agnhost, packed
//! under the names that the tests ask for. Nothing is pulled.
//!
//! The format is that of an OCI image layout (image-spec 1.1, `image-layout.md`): one archive for all of them, and a small one
//! for netlb, which changes oftener. That is made of the same base system, which it names and does not hold.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Debian's release that the base system is from.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
/// What upstream's tests call inside pods.
const TOOLS: [&str; 10] = [
    "conntrack",
    "curl",
    "dnsutils",
    "iperf",
    "iproute2",
    "iptables",
    "iputils-ping",
    "netcat-openbsd",
    "nftables",
    "wget",
];
/// What containers do not need of a base system.
const LEFT_OUT: [&str; 6] =
    ["./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./var/cache/apt", "./var/lib/apt/lists", "./var/log"];

/// Names of the image that is agnhost: what it does follows from its arguments. The first is that of every pod's sandbox.
const AGNHOST: [&str; 5] = [
    "registry.k8s.io/pause:3.10.2",
    "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
    "registry.k8s.io/e2e-test-images/agnhost:2.55",
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
    "registry.k8s.io/build-image/distroless-iptables:v0.9.6",
];
/// The image of a regression test, a program of its own.
const REGRESSION: &str = "registry.k8s.io/e2e-test-images/regression-issue-74839:1.4";
/// The image of netlb's DaemonSet.
pub const NETLB: &str = "netlb.test/netlb:built";
/// Which base system the archive of all images holds, beside it.
const BASE: &str = "base.json";

/// Makes sure that the archive of all images is there, made of the programs in `bin`, and returns its path.
///
/// # Errors
/// When Debian's base system cannot be had or a file cannot be written.
pub fn build(target: &Path, bin: &Path) -> Result<PathBuf> {
    let folder = target.join("cluster/images");
    let _lock = lock(&folder)?;
    let archive = folder.join("images.tar");
    let programs = ["agnhost", "regression-issue-74839"].map(|name| bin.join(name));
    if programs.iter().chain([&folder.join(BASE)]).all(|file| newer(&archive, file)) {
        return Ok(archive);
    }
    let base = base_system(&folder)?;
    let started = Instant::now();
    let layout = folder.join("layout");
    remove(&layout)?;
    let mut store = Store::create(&layout)?;
    let base = store.layer(&base)?;
    let descriptor = folder.join(BASE);
    fs::write(&descriptor, serde_json::to_vec(&base).context("cannot write JSON")?)
        .with_context(|| format!("cannot write {}", descriptor.display()))?;
    let [agnhost, regression] = &programs;
    let agnhost_layer = program_layer(&folder, agnhost, "agnhost")?;
    let agnhost_layer = store.layer(&agnhost_layer)?;
    for name in AGNHOST {
        store.image(name, &[&base, &agnhost_layer], &["/agnhost"], &["pause"])?;
    }
    let regression_layer = program_layer(&folder, regression, "regression-issue-74839")?;
    let regression_layer = store.layer(&regression_layer)?;
    store.image(REGRESSION, &[&base, &regression_layer], &["/regression-issue-74839"], &[])?;
    store.finish(&archive)?;
    remove(&layout)?;
    println!("packed the images of pods in {} s", started.elapsed().as_secs());
    Ok(archive)
}

/// Makes sure that the archive of netlb's image is there, made of `program`, and returns its path. It is of use to a containerd
/// that has the archive of [`build`], which must have been made before.
///
/// # Errors
/// When a file cannot be read or written.
pub fn netlb(target: &Path, program: &Path) -> Result<PathBuf> {
    let folder = target.join("cluster/images");
    let _lock = lock(&folder)?;
    let (archive, base) = (folder.join("netlb.tar"), folder.join(BASE));
    if [program, &base].iter().all(|file| newer(&archive, file)) {
        return Ok(archive);
    }
    let base = fs::read(&base).with_context(|| format!("cannot read {}", base.display()))?;
    let base: Blob = serde_json::from_slice(&base).context("what is known of the base system is not understood")?;
    let layout = folder.join("layout");
    remove(&layout)?;
    let mut store = Store::create(&layout)?;
    // What a debugger needs is most of the program, and would have to be copied onto every node.
    let stripped = folder.join("netlb");
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program))?;
    let layer = program_layer(&folder, &stripped, "netlb")?;
    let layer = store.layer(&layer)?;
    store.image(NETLB, &[&base, &layer], &["/netlb"], &["agent"])?;
    store.finish(&archive)?;
    remove(&layout)?;
    Ok(archive)
}

/// Debian's base system with [`TOOLS`], as an archive.
fn base_system(folder: &Path) -> Result<PathBuf> {
    let archive = folder.join("base.tar");
    if archive.is_file() {
        return Ok(archive);
    }
    println!("making the base system of pods' images from Debian's packages; about a minute");
    let started = Instant::now();
    let root = folder.join("root");
    remove(&root)?;
    // In mounts of its own: what debootstrap mounts goes with it, however it ends.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "debootstrap", "--variant=minbase"]);
    command.arg(format!("--include={}", TOOLS.join(","))).arg(SUITE).arg(&root).arg(MIRROR);
    run(&mut command)?;
    let fresh = folder.join("base.new.tar");
    let mut command = Command::new("tar");
    command.arg("-C").arg(&root).args(LEFT_OUT.map(|path| format!("--exclude={path}/*")));
    run(command.args(["--one-file-system", "--numeric-owner", "-cf"]).arg(&fresh).arg("."))?;
    fs::rename(&fresh, &archive).with_context(|| format!("cannot make {}", archive.display()))?;
    remove(&root)?;
    println!("made the base system of pods' images in {} s", started.elapsed().as_secs());
    Ok(archive)
}

/// Two that pack images in one folder wait for each other.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("cannot make the lock of the images' folder")?;
    lock.lock().context("cannot lock the images' folder")?;
    Ok(lock)
}

/// A layer with one program at its top, and the folder for uploads that agnhost keeps.
fn program_layer(folder: &Path, program: &Path, name: &str) -> Result<PathBuf> {
    let root = folder.join("layer");
    remove(&root)?;
    fs::create_dir_all(root.join("uploads")).with_context(|| format!("cannot make {}", root.display()))?;
    fs::copy(program, root.join(name)).with_context(|| format!("cannot read {}", program.display()))?;
    let archive = folder.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(&root).args(["--numeric-owner", "-cf"]).arg(&archive).arg("."))?;
    remove(&root)?;
    Ok(archive)
}

/// An image layout that is being filled.
struct Store {
    folder: PathBuf,
    manifests: Vec<Value>,
}

/// What is stored: its kind, digest and size in bytes. As JSON it is a descriptor.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    media_type: String,
    digest: String,
    size: u64,
}

impl Store {
    fn create(folder: &Path) -> Result<Self> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        Ok(Self { folder: folder.to_owned(), manifests: Vec::new() })
    }

    /// Takes an archive in as a layer.
    fn layer(&mut self, archive: &Path) -> Result<Blob> {
        let mut file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
        let (mut hash, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 20], 0);
        loop {
            let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", archive.display()))?;
            if read == 0 {
                break;
            }
            hash.update(buffer.get(..read).unwrap_or_default());
            size += read as u64;
        }
        let digest = hex(&hash.finalize());
        let place = self.folder.join("blobs/sha256").join(&digest);
        fs::copy(archive, &place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(Blob {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: format!("sha256:{digest}"),
            size,
        })
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Result<Blob> {
        let text = serde_json::to_vec(value).context("cannot write JSON")?;
        let digest = hex(&Sha256::digest(&text));
        let place = self.folder.join("blobs/sha256").join(&digest);
        fs::write(&place, &text).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(Blob { media_type: media_type.to_owned(), digest: format!("sha256:{digest}"), size: text.len() as u64 })
    }

    /// Makes an image of layers, lowest first.
    fn image(&mut self, name: &str, layers: &[&Blob], entry_point: &[&str], arguments: &[&str]) -> Result<()> {
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Entrypoint": entry_point,
                "Cmd": arguments,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>()},
        });
        let config = self.json("application/vnd.oci.image.config.v1+json", &config)?;
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config,
            "layers": layers,
        });
        let manifest = self.json(manifest_type, &manifest)?;
        self.manifests.push(json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": manifest.size,
            "annotations": {"io.containerd.image.name": name},
        }));
        Ok(())
    }

    /// Packs the layout.
    fn finish(self, archive: &Path) -> Result<()> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        });
        for (file, value) in [("index.json", index), ("oci-layout", json!({"imageLayoutVersion": "1.0.0"}))] {
            fs::write(self.folder.join(file), value.to_string()).with_context(|| format!("cannot write {file}"))?;
        }
        let fresh = archive.with_extension("new");
        run(Command::new("tar").arg("-C").arg(&self.folder).arg("-cf").arg(&fresh).args([
            "oci-layout",
            "index.json",
            "blobs",
        ]))?;
        fs::rename(&fresh, archive).with_context(|| format!("cannot make {}", archive.display()))
    }
}

/// This machine's architecture, as Go and OCI call it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn newer(archive: &Path, than: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    matches!((modified(archive), modified(than)), (Ok(archive), Ok(than)) if archive >= than)
}

/// Runs a command silently; what it printed is shown if it fails.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        bail!(
            "{program} failed ({}):\n{}",
            output.status,
            lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
        );
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

    #[test]
    fn a_layout_names_every_image_and_every_blob_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("layer.tar"), "abc").unwrap();
        let mut store = Store::create(&folder.path().join("layout")).unwrap();
        let layer = store.layer(&folder.path().join("layer.tar")).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(layer.digest, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(layer.size, 3);
        store.image("example/one:1", &[&layer], &["/one"], &[]).unwrap();
        let archive = folder.path().join("images.tar");
        store.finish(&archive).unwrap();
        let list = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let index = fs::read_to_string(folder.path().join("layout/index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index.pointer("/manifests/0/annotations/io.containerd.image.name").unwrap(), "example/one:1");
        let manifest = index.pointer("/manifests/0/digest").and_then(Value::as_str).unwrap();
        for digest in [manifest, &layer.digest] {
            assert!(list.contains(&format!("blobs/sha256/{}\n", digest.trim_start_matches("sha256:"))), "{list}");
        }
    }
}
