//! Where the API server is, and who we are to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, service_fn};

use super::addresses::{Addresses, connect};
use super::trouble::chain;

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How the agent gets to its API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// `None`: as a pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Goes before the address in the kubeconfig, or that of the API server's Service.
    pub server: Option<String>,
}

/// It cannot be used as it is.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(String);

impl Access {
    /// Whether this process runs in a pod with a service account.
    pub fn in_cluster() -> bool {
        Path::new(ACCOUNT).exists()
    }

    /// The configuration as it is now: files may have been renewed.
    pub(super) async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let fault = |error: &dyn std::error::Error| -> AccessError {
                    let path = path.display();
                    AccessError(format!("--kubeconfig {path}: {error}; name a file that kubectl can use"))
                };
                let file = Kubeconfig::read_from(path).map_err(|e| fault(&e))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| fault(&e))?
            }
            None => {
                let config = if self.server.is_some() { Config::incluster_dns() } else { Config::incluster_env() };
                config.map_err(|error| {
                    AccessError(format!(
                        "the service account cannot be used: {}; mount its token, or name a file with --kubeconfig",
                        chain(&error)
                    ))
                })?
            }
        };
        if let Some(server) = &self.server {
            let fault =
                |_| AccessError(format!("--api-server {server} is no URL; write one like https://10.0.0.1:6443"));
            config.cluster_url = server.parse().map_err(fault)?;
        }
        Ok(config)
    }

    /// Whether the address that is asked at may be a VIP that nobody serves yet.
    pub(super) fn is_by_service(&self) -> bool {
        self.kubeconfig.is_none() && self.server.is_none()
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kubeconfig, &self.server) {
            (Some(path), None) => write!(f, "kubeconfig {}", path.display()),
            (Some(path), Some(server)) => write!(f, "{server} by kubeconfig {}", path.display()),
            (None, Some(server)) => write!(f, "{server} by service account"),
            (None, None) => f.write_str("service account"),
        }
    }
}

/// A client of this configuration. Its connections go where [`connect`] leads them.
pub(super) fn client(config: &Config, addresses: Arc<Addresses>) -> Result<Client, AccessError> {
    let fault = |error: kube::Error| AccessError(format!("the credentials cannot be used: {}", chain(&error)));
    let tcp = service_fn(move |uri| connect(uri, Arc::clone(&addresses)));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(fault)?;
    let http: Http<_, Body> = Http::builder(TokioExecutor::new()).build(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(fault)?)
        .layer(config.extra_headers_layer().map_err(fault)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
