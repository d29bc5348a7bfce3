//! A client certificate that lives in files: it is renewed there before it expires, and used only by who reads it again.

use std::{fs, path::PathBuf, time::Duration};

use kube::config::AuthInfo;

const INTERVAL: Duration = Duration::from_secs(30);
/// Certificate and key are two files, which are not replaced at the same moment.
const SETTLING: Duration = Duration::from_secs(5);

/// The files, and what was in them when the connection was made.
#[derive(Debug, Default)]
pub(crate) struct CertificateFiles(Vec<(PathBuf, Vec<u8>)>);

impl CertificateFiles {
    pub(super) fn of(user: &AuthInfo) -> Self {
        let file = |path: &Option<String>, data: bool| path.as_ref().filter(|_| !data).map(PathBuf::from);
        let certificate = file(&user.client_certificate, user.client_certificate_data.is_some());
        let key = file(&user.client_key, user.client_key_data.is_some());
        let read = |path: PathBuf| fs::read(&path).ok().map(|content| (path, content));
        Self([certificate, key].into_iter().flatten().filter_map(read).collect())
    }

    /// Ends when a file has another content; one that is gone for a moment has none.
    pub(crate) async fn changed(self) -> anyhow::Error {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let differs = |(path, content): &&(PathBuf, Vec<u8>)| {
                fs::read(path).is_ok_and(|now| now != *content && !now.is_empty())
            };
            if let Some((path, _)) = self.0.iter().find(differs) {
                tokio::time::sleep(SETTLING).await;
                return anyhow::anyhow!(
                    "the client certificate was renewed ({}): starting over with it",
                    path.display()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_is_noticed_and_a_missing_one_is_not() {
        let path = std::env::temp_dir().join(format!("switchyard-certificate-{}", std::process::id()));
        fs::write(&path, "old").expect("a file");
        let user = AuthInfo { client_certificate: Some(path.display().to_string()), ..AuthInfo::default() };
        let changed = tokio::spawn(CertificateFiles::of(&user).changed());
        tokio::time::sleep(INTERVAL * 3).await;
        fs::remove_file(&path).expect("it is there");
        tokio::time::sleep(INTERVAL * 3).await;
        assert!(!changed.is_finished());
        fs::write(&path, "new").expect("a file");
        let reason = changed.await.expect("it ends").to_string();
        fs::remove_file(&path).expect("it is there");
        assert!(reason.contains(&path.display().to_string()), "{reason}");
    }
}
