//! Which Kubernetes release this program stands in for, and which release it is itself.

/// The release whose kube-proxy this one replaces.
pub(crate) const COMPATIBLE: &str = "v1.36.2";
pub(crate) const MAJOR: u32 = 1;
pub(crate) const MINOR: u32 = 36;

/// Our own release.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

/// What `--version` prints; scripts compare this line.
pub(crate) fn short() -> String {
    format!("Kubernetes {COMPATIBLE}")
}

/// What `--version=raw` prints: the release as kube-proxy spells it, then ours.
pub(crate) fn raw() -> String {
    format!(
        "version.Info{{Major:\"{MAJOR}\", Minor:\"{MINOR}\", GitVersion:\"{COMPATIBLE}\", Platform:\"linux/{}\"}}\n\
         Switchyard {OWN}",
        go_architecture()
    )
}

/// The name of this processor architecture as Kubernetes uses it.
pub(crate) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_the_version_agree() {
        assert!(COMPATIBLE.starts_with(&format!("v{MAJOR}.{MINOR}.")));
        assert_eq!(short(), "Kubernetes v1.36.2");
    }
}
