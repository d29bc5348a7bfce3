//! Why a command line or a configuration is refused: always the field, its value and what is allowed.

use std::{fmt, io, path::PathBuf};

/// One field that has a value it may not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// As in the file, for example `iptables.masqueradeBit`.
    pub(crate) field: String,
    /// As JSON.
    pub(crate) value: String,
    pub(crate) allowed: String,
}

impl FieldError {
    pub(super) fn new(field: &str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self { field: field.to_owned(), value: value.to_string(), allowed: allowed.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: Invalid value: {}: {}", self.field, self.value, self.allowed)
    }
}

/// Why no command results. The process prints it and exits with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The command line itself.
    #[error("{0}")]
    Flag(String),
    #[error("failed complete: cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed complete: cannot decode the configuration file {}: {reason}", path.display())]
    Decode { path: PathBuf, reason: String },
    #[error("failed complete: {}", .0.join(", "))]
    FeatureGates(Vec<String>),
    #[error("failed complete: empty hostname-override is invalid")]
    EmptyHostname,
    #[error("failed validate: {}", join(.0))]
    Invalid(Vec<FieldError>),
}

fn join(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}
