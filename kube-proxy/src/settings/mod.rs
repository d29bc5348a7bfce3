//! From a command line (and the file it names) to a command with typed settings, or to the reason why not.

use std::{fs, path::PathBuf};

use configuration::{Configuration, Logging};
use decode::DecodeError;
use effective::Settings;
use error::ConfigError;
use validate::Surroundings;

use crate::settings::{
    feature_gates::FeatureGates,
    flags::{Flags, VersionRequest},
};

pub(crate) mod configuration;
mod decode;
pub(crate) mod differences;
pub(crate) mod effective;
mod encode;
pub(crate) mod environment;
pub(crate) mod error;
pub(crate) mod feature_gates;
mod fields;
pub(crate) mod file_watch;
mod flags;
pub(crate) mod go_text;
pub(crate) mod insight;
pub(crate) mod plausibility;
pub(crate) mod service_metrics;
mod validate;
pub(crate) mod version;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Print this to stdout and exit 0.
    Print(String),
    /// The same with what else the program can do.
    Help(String),
    /// Write this text to the file and exit 0.
    WriteConfig {
        path: PathBuf,
        text: String,
    },
    /// Remove every rule of every mode and exit.
    Cleanup(Box<Settings>),
    /// Remove what a kube-proxy that came after us does not know and exit.
    CleanupOwn(Box<Settings>),
    /// Set the sysctls and exit 0.
    InitOnly(Box<Settings>),
    Run(Box<Settings>),
}

/// A command, and what is to be logged once logging works.
#[derive(Debug, PartialEq)]
pub(crate) struct Loaded {
    pub(crate) command: Command,
    pub(crate) notices: Vec<String>,
}

/// Decides what the command line (without the program's name) asks for.
pub(crate) fn load<S: AsRef<str>>(arguments: &[S]) -> Result<Loaded, ConfigError> {
    let mut flags = Flags::parse(arguments)?;
    if flags.help {
        return Ok(Loaded { command: Command::Help(flags::help()), notices: Vec::new() });
    }
    let print = match flags.version {
        VersionRequest::None => None,
        VersionRequest::Short => Some(version::short()),
        VersionRequest::Raw => Some(version::raw()),
    };
    if let Some(text) = print {
        return Ok(Loaded { command: Command::Print(format!("{text}\n")), notices: Vec::new() });
    }
    let shown = flags.all();
    let mut notices = flags.deprecations();
    let mut configuration = if flags.config.is_empty() {
        from_flags(&flags)
    } else {
        let path = PathBuf::from(&flags.config);
        let text =
            fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        from_file(&flags, path, &text, &mut notices)?
    };
    let mode_defaulted = configuration.mode.is_empty();
    notices.extend(configuration.default_for_linux());
    if !flags.hostname_override.is_empty() {
        let name = flags.hostname_override.trim();
        if name.is_empty() {
            return Err(ConfigError::EmptyHostname);
        }
        configuration.hostname_override = name.to_lowercase();
    }
    let (feature_gates, gate_notices) =
        FeatureGates::new(&configuration.feature_gates).map_err(ConfigError::FeatureGates)?;
    notices.extend(gate_notices);
    let settings = validate::validate(
        &configuration,
        Surroundings {
            mode_defaulted,
            feature_gates,
            vip_binding: flags.ipvs_vip_binding,
            insight_socket: flags.given("insight-socket").then(|| flags.insight_socket.clone()),
            master: (!flags.master.is_empty()).then(|| flags.master.clone()),
            config_file: (!flags.config.is_empty()).then(|| PathBuf::from(&flags.config)),
            flags: shown,
        },
    )
    .map_err(ConfigError::Invalid)?;
    let command = if !flags.write_config_to.is_empty() {
        Command::WriteConfig {
            path: PathBuf::from(&flags.write_config_to),
            text: encode::to_yaml(&settings.document),
        }
    } else if flags.cleanup {
        Command::Cleanup(Box::new(settings))
    } else if flags.cleanup_own {
        Command::CleanupOwn(Box::new(settings))
    } else if flags.init_only {
        Command::InitOnly(Box::new(settings))
    } else {
        Command::Run(Box::new(settings))
    };
    Ok(Loaded { command, notices })
}

/// The settings of a configuration that was read before, without flags: for those who ask what it would do.
pub(crate) fn of_document(document: &serde_json::Value) -> Result<Settings, ConfigError> {
    let none: [&str; 0] = [];
    let flags = Flags::parse(&none)?;
    let mut notices = Vec::new();
    let path = PathBuf::from("the configuration in force");
    let mut configuration = from_file(&flags, path, &document.to_string(), &mut notices)?;
    configuration.default_for_linux();
    let (feature_gates, _) =
        FeatureGates::new(&configuration.feature_gates).map_err(ConfigError::FeatureGates)?;
    let surroundings = Surroundings {
        mode_defaulted: configuration.mode.is_empty(),
        feature_gates,
        vip_binding: flags.ipvs_vip_binding,
        insight_socket: None,
        master: None,
        config_file: None,
        flags: Vec::new(),
    };
    validate::validate(&configuration, surroundings).map_err(ConfigError::Invalid)
}

/// Without a file: the flags are the configuration.
fn from_flags(flags: &Flags) -> Configuration {
    let mut to = flags.configuration.clone();
    if to.bind_address.is_empty() {
        to.bind_address = Configuration::default().bind_address;
    }
    if to.healthz_bind_address.is_empty() {
        to.healthz_bind_address = Configuration::default().healthz_bind_address;
    }
    if flags.write_config_to.is_empty() {
        Configuration::apply_deprecated_port(&mut to.healthz_bind_address, flags.healthz_port);
        Configuration::apply_deprecated_port(&mut to.metrics_bind_address, flags.metrics_port);
    }
    let ipvs = to.mode == "ipvs";
    let (prefix, sync, min) = if ipvs {
        ("ipvs", flags.ipvs_sync_period, flags.ipvs_min_sync_period)
    } else {
        ("iptables", flags.iptables_sync_period, flags.iptables_min_sync_period)
    };
    if flags.given(&format!("{prefix}-sync-period")) {
        to.sync_period = sync;
    }
    if flags.given(&format!("{prefix}-min-sync-period")) {
        to.min_sync_period = min;
        to.min_sync_period_given = true;
    }
    if flags.given("cluster-cidr") {
        to.cluster_cidrs = flags.cluster_cidr.split(',').map(str::to_owned).collect();
    }
    // There is one flag for the bit; kube-proxy gives it to the iptables part only.
    to
}

/// With a file: it is the configuration, except for the logging flags that were given.
fn from_file(
    flags: &Flags,
    path: PathBuf,
    text: &str,
    notices: &mut Vec<String>,
) -> Result<Configuration, ConfigError> {
    let decoded = decode::decode(text).map_err(|error| match error {
        DecodeError::Document(reason) => ConfigError::Decode { path: path.clone(), reason },
        DecodeError::Fields(errors) => ConfigError::Invalid(errors),
    })?;
    if !decoded.strict_errors.is_empty() {
        notices.push(format!(
            "Using lenient decoding as strict decoding failed: {}",
            decoded.strict_errors.join(", ")
        ));
    }
    let mut to = decoded.configuration;
    overlay_logging(flags, &mut to.logging);
    Ok(to)
}

fn overlay_logging(flags: &Flags, to: &mut Logging) {
    let from = &flags.configuration.logging;
    if flags.given("logging-format") {
        to.format.clone_from(&from.format);
    }
    if flags.given("log-flush-frequency") {
        to.flush_frequency = from.flush_frequency;
    }
    if flags.given("v") {
        to.verbosity = from.verbosity;
    }
    // The first match counts, so those of the command line come first.
    to.vmodule.splice(..0, from.vmodule.iter().cloned());
    for (format, from, to) in [("text", &from.text, &mut to.text), ("json", &from.json, &mut to.json)] {
        if flags.given(&format!("log-{format}-split-stream")) {
            to.split_stream = from.split_stream;
        }
        if flags.given(&format!("log-{format}-info-buffer-size")) {
            to.info_buffer_size.clone_from(&from.info_buffer_size);
        }
    }
}

#[cfg(test)]
mod tests;
