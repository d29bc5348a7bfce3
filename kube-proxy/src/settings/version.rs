//! Which Kubernetes release this program stands in for, and which release it is itself.

/// The release whose kube-proxy this one replaces. All that depends on it follows: `--version`, metrics, and the stages of
/// feature gates.
pub(crate) const COMPATIBLE: &str = "v1.36.2";
pub(crate) const MAJOR: u32 = part(COMPATIBLE, 0);
pub(crate) const MINOR: u32 = part(COMPATIBLE, 1);

/// A number of a version such as `v1.36.2`.
const fn part(version: &str, wanted: usize) -> u32 {
    let text = version.as_bytes();
    let (mut at, mut dots, mut number) = (1, 0, 0);
    while at < text.len() && dots <= wanted {
        match text[at] {
            b'.' => dots += 1,
            digit if dots == wanted => number = number * 10 + (digit - b'0') as u32,
            _ => {}
        }
        at += 1;
    }
    number
}

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
        assert_eq!(short(), format!("Kubernetes {COMPATIBLE}"));
        assert_eq!([part("v1.37.10", 0), part("v1.37.10", 1), part("v1.37.10", 2)], [1, 37, 10]);
    }
}
