//! Who is who in the cluster: an authority, and a certificate for each that serves or asks.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// The cluster's authority and the folder that all files of it are in, as PEM.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate's and its key's file.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority and the key that signs the tokens of ServiceAccounts.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "netlb-testcluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make the authority's key")?;
        let certificate = params.self_signed(&key).context("cannot sign the authority's certificate")?.pem();
        write(&folder.join("ca.crt"), &certificate)?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        let accounts = KeyPair::generate().context("cannot make the key of the ServiceAccounts")?;
        write(&folder.join("accounts.key"), &accounts.serialize_pem())?;
        write(&folder.join("accounts.pub"), &accounts.public_key_pem())?;
        Ok(Self { folder, issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate and key.
    #[must_use]
    pub fn files(&self) -> Files {
        self.pair("ca")
    }

    /// The key that signs the tokens of ServiceAccounts.
    #[must_use]
    pub fn accounts_key(&self) -> PathBuf {
        self.folder.join("accounts.key")
    }

    /// The public part of [`Authority::accounts_key`].
    #[must_use]
    pub fn accounts_public_key(&self) -> PathBuf {
        self.folder.join("accounts.pub")
    }

    /// A certificate for a server at these names and addresses.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn server(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Files> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .context("a name that cannot stand in a certificate")?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(file, params, file, None)
    }

    /// A certificate for a client: its user's name, and the group it is in.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Files> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params, user, group)
    }

    /// A kubeconfig of a client's, which names the files of this folder, for the API server at `server`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn kubeconfig(&self, file: &str, server: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let client = self.client(file, user, group)?;
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {
                "server": server,
                "certificate-authority": self.files().certificate,
            }}],
            "users": [{"name": "user", "user": {
                "client-certificate": client.certificate,
                "client-key": client.key,
            }}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        });
        let path = self.folder.join(format!("{file}.kubeconfig"));
        write(&path, &serde_json::to_string_pretty(&text)?)?;
        Ok(path)
    }

    fn sign(&self, file: &str, mut params: CertificateParams, user: &str, group: Option<&str>) -> Result<Files> {
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().with_context(|| format!("cannot make a key for {user}"))?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("cannot sign for {user}"))?;
        let files = self.pair(file);
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    fn pair(&self, file: &str) -> Files {
        Files { certificate: self.folder.join(format!("{file}.crt")), key: self.folder.join(format!("{file}.key")) }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_for_one_user_and_readable_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path().to_owned()).unwrap();
        let path = authority.kubeconfig("admin", "https://192.0.2.1:6443", "admin", Some("system:masters")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config.pointer("/clusters/0/cluster/server").unwrap(), "https://192.0.2.1:6443");
        for pointer in [
            "/clusters/0/cluster/certificate-authority",
            "/users/0/user/client-certificate",
            "/users/0/user/client-key",
        ] {
            let file = Path::new(config.pointer(pointer).unwrap().as_str().unwrap());
            assert!(fs::read_to_string(file).unwrap().starts_with("-----BEGIN "), "{pointer}");
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
