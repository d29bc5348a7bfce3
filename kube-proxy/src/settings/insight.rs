//! Where questions about the node are answered.

use std::path::PathBuf;

use super::flags::DEFAULT_INSIGHT_SOCKET;

/// A DaemonSet whose command stays as it is can be given a variable.
const VARIABLE: &str = "SWITCHYARD_INSIGHT_SOCKET";

/// The socket: as the flag says, or else the variable, or else the default. `None`: it was switched off.
pub(crate) fn socket(flag: Option<&str>) -> Option<PathBuf> {
    chosen(flag, std::env::var(VARIABLE).ok())
}

fn chosen(flag: Option<&str>, variable: Option<String>) -> Option<PathBuf> {
    let text = flag.map(str::to_owned).or(variable).unwrap_or_else(|| DEFAULT_INSIGHT_SOCKET.to_owned());
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_variable_and_an_empty_one_is_none() {
        let variable = |text: &str| Some(text.to_owned());
        assert_eq!(chosen(None, None), Some(DEFAULT_INSIGHT_SOCKET.into()));
        assert_eq!(chosen(None, variable("/a")), Some("/a".into()));
        assert_eq!(chosen(Some("/b"), variable("/a")), Some("/b".into()));
        assert_eq!(chosen(Some(""), variable("/a")), None);
        assert_eq!(chosen(None, variable("")), None);
    }
}
