//! The certificates of the authorities that are believed, and PEM texts.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;

use super::certificate::Certificate;

type Certificates = Arc<[Vec<u8>]>;

/// Where the authorities come from.
#[derive(Debug)]
pub(in super::super) struct Authority {
    /// Read again for every handshake: there are few, and authorities are renewed under a running program.
    path: Option<PathBuf>,
    last: Mutex<Certificates>,
}

impl Authority {
    pub(in super::super) fn of_text(text: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { path: None, last: Mutex::new(certificates(text)?) })
    }

    pub(in super::super) fn of_file(path: PathBuf) -> anyhow::Result<Self> {
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let last = certificates(&text).with_context(|| path.display().to_string())?;
        Ok(Self { path: Some(path), last: Mutex::new(last) })
    }

    /// Those of the operating system (`SSL_CERT_FILE` and `SSL_CERT_DIR` count, as for Go's programs).
    pub(in super::super) fn of_system() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "Some of the operating system's certificate authorities cannot be read");
        }
        if found.certs.is_empty() {
            tracing::error!(
                "No certificate authority is given for the API server, and the operating system has none: no server will be believed"
            );
        }
        Self { path: None, last: Mutex::new(found.certs.iter().map(|one| one.to_vec()).collect()) }
    }

    /// Where nobody is asked.
    pub(in super::super) fn nobody() -> Self {
        Self { path: None, last: Mutex::new(Arc::new([])) }
    }

    /// A file that is gone, or half written, leaves the last ones in use.
    pub(super) fn certificates(&self) -> Certificates {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            match fs::read(path).map_err(anyhow::Error::from).and_then(|text| certificates(&text)) {
                Ok(now) => *last = now,
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, error = %format!("{error:#}"), "The last certificate authorities stay in use");
                }
            }
        }
        Arc::clone(&last)
    }
}

/// All certificates of a PEM text that can be read. What stands between, before and after them does not matter.
fn certificates(text: &[u8]) -> anyhow::Result<Certificates> {
    let mut failure = None;
    let mut found = Vec::new();
    for block in blocks(text).into_iter().filter(|block| block.tag() == "CERTIFICATE") {
        match Certificate::parse(block.contents()) {
            Ok(_) => found.push(block.into_contents()),
            Err(reason) => failure = Some(reason),
        }
    }
    match failure {
        Some(reason) if found.is_empty() => {
            anyhow::bail!("no certificate authority: the certificate {reason}")
        }
        Some(reason) => tracing::warn!("One of the certificate authorities is left out: it {reason}"),
        None => anyhow::ensure!(!found.is_empty(), "no certificate authority: there is no CERTIFICATE block"),
    }
    Ok(found.into())
}

/// The blocks of a PEM text; one that is damaged is left out.
pub(in super::super) fn blocks(text: &[u8]) -> Vec<pem::Pem> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let mut starts: Vec<usize> = text
        .windows(BEGIN.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == BEGIN)
        .map(|(at, _)| at)
        .collect();
    starts.push(text.len());
    starts.windows(2).filter_map(|part| pem::parse(&text[part[0]..part[1]]).ok()).collect()
}
