//! A lab whose API server speaks TLS: the files that tell the proxy whom to believe and who it is.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::apiserver::{Authority, Certified, Dialect, Security};
use crate::connect_proxy::ConnectProxy;
use crate::network::Namespace;

/// Where the proxy on the way to the API server is, if there is one.
const ON_THE_WAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3128);

/// How a lab's API server is reached over TLS.
#[derive(Debug, Clone, Copy)]
pub struct Secure {
    pub dialect: Dialect,
    /// By CONNECT through a proxy that speaks TLS itself.
    pub through_proxy: bool,
}

impl Secure {
    pub const HTTP2: Self = Self { dialect: Dialect::Http2, through_proxy: false };
}

/// The certificates of a lab.
#[derive(Debug)]
pub struct Secured {
    pub authority: Authority,
    /// What the server shows.
    pub security: Security,
    /// What the kubeconfig names: certificates that are believed, the client's certificate, its token.
    pub believed: PathBuf,
    pub client: Certified,
    pub token: PathBuf,
    pub proxy: Option<ConnectProxy>,
    folder: PathBuf,
}

impl Secured {
    pub(super) fn create(folder: &Path, secure: Secure, node: &Namespace) -> Result<Self> {
        let made = folder.join("pki");
        let authority = Authority::create(&made, "authority").context("openssl makes an authority")?;
        let server = authority.server("server")?;
        let security = Security::new(secure.dialect, &server, &authority)?;
        let of = |name: &str| folder.join(name);
        let client = Certified { certificate: of("client.crt"), key: of("client.key") };
        let proxy = if secure.through_proxy {
            Some(node.run(|| ConnectProxy::start(ON_THE_WAY, &security))??)
        } else {
            None
        };
        let secured = Self {
            believed: of("authorities.crt"),
            token: of("token"),
            folder: folder.to_owned(),
            authority,
            security,
            client,
            proxy,
        };
        secured.believe(&[&secured.authority])?;
        secured.be(&secured.authority.client("node-1")?)?;
        secured.bring("first-token")?;
        Ok(secured)
    }

    /// Replaces what is believed.
    pub fn believe(&self, authorities: &[&Authority]) -> Result<()> {
        let texts: Result<Vec<String>, _> =
            authorities.iter().map(|one| fs::read_to_string(&one.own.certificate)).collect();
        self.replace(&self.believed, &texts?.concat())
    }

    /// Replaces the client's certificate and key, one after the other.
    pub fn be(&self, client: &Certified) -> Result<()> {
        self.replace(&self.client.certificate, &fs::read_to_string(&client.certificate)?)?;
        self.replace(&self.client.key, &fs::read_to_string(&client.key)?)
    }

    /// Replaces the client's token.
    pub fn bring(&self, token: &str) -> Result<()> {
        self.replace(&self.token, token)
    }

    /// No half of a file is ever seen.
    fn replace(&self, file: &Path, text: &str) -> Result<()> {
        let new = self.folder.join("new");
        fs::write(&new, text)?;
        fs::rename(&new, file).with_context(|| format!("replacing {}", file.display()))
    }

    pub(super) fn kubeconfig(&self, url: &str) -> String {
        let proxy = self.proxy.as_ref().map(|proxy| format!("    proxy-url: {}\n", proxy.url()));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: lab\n\
             clusters:\n- name: lab\n  cluster:\n    server: {url}\n    certificate-authority: {}\n{}\
             users:\n- name: lab\n  user:\n    client-certificate: {}\n    client-key: {}\n    tokenFile: {}\n",
            self.believed.display(),
            proxy.unwrap_or_default(),
            self.client.certificate.display(),
            self.client.key.display(),
            self.token.display(),
        )
    }
}
