//! The command line: every flag of kube-proxy, parsed by the rules of its flag library (pflag).
//!
//! `clap` is not used: `-v=2`, `--flag_name`, lists that add up, booleans that take no separate value, and a value
//! and a "was it given" for every flag (they are logged, served on `/flagz`, and decide what overrides a file) are
//! one table and one loop here.

use std::collections::BTreeSet;

use backend_ipvs::Binding;

use crate::settings::{configuration::Configuration, error::ConfigError, go_text::GoDuration};

mod table;
mod values;

pub(crate) use values::VersionRequest;

/// Where questions about the node are answered, unless somebody says otherwise.
pub(crate) const DEFAULT_INSIGHT_SOCKET: &str = "/run/switchyard/insight.sock";

/// The variables that flags set.
#[derive(Debug, Clone)]
pub(crate) struct Flags {
    /// What is also a field of the configuration; replaced as a whole by a file.
    pub(crate) configuration: Configuration,
    pub(crate) config: String,
    pub(crate) write_config_to: String,
    pub(crate) cleanup: bool,
    /// Our own.
    pub(crate) cleanup_own: bool,
    pub(crate) init_only: bool,
    pub(crate) help: bool,
    pub(crate) version: VersionRequest,
    pub(crate) master: String,
    pub(crate) hostname_override: String,
    pub(crate) healthz_port: i32,
    pub(crate) metrics_port: i32,
    pub(crate) cluster_cidr: String,
    pub(crate) iptables_sync_period: GoDuration,
    pub(crate) iptables_min_sync_period: GoDuration,
    pub(crate) ipvs_sync_period: GoDuration,
    pub(crate) ipvs_min_sync_period: GoDuration,
    /// Our own: kube-proxy has neither this flag nor a field of the configuration for it.
    pub(crate) ipvs_vip_binding: Binding,
    /// Our own, likewise.
    pub(crate) insight_socket: String,
    boot_id_file: String,
    machine_id_file: String,
    given: BTreeSet<&'static str>,
}

impl Default for Flags {
    fn default() -> Self {
        let configuration = Configuration::default();
        let (sync, min) = (configuration.sync_period, configuration.min_sync_period);
        Self {
            configuration,
            config: String::new(),
            write_config_to: String::new(),
            cleanup: false,
            cleanup_own: false,
            init_only: false,
            help: false,
            version: VersionRequest::None,
            master: String::new(),
            hostname_override: String::new(),
            healthz_port: 10256,
            metrics_port: 10249,
            cluster_cidr: String::new(),
            iptables_sync_period: sync,
            iptables_min_sync_period: min,
            ipvs_sync_period: sync,
            ipvs_min_sync_period: min,
            ipvs_vip_binding: Binding::default(),
            insight_socket: DEFAULT_INSIGHT_SOCKET.to_owned(),
            boot_id_file: "/proc/sys/kernel/random/boot_id".to_owned(),
            machine_id_file: "/etc/machine-id,/var/lib/dbus/machine-id".to_owned(),
            given: BTreeSet::new(),
        }
    }
}

impl Flags {
    /// Parses the arguments, without the program's name.
    pub(crate) fn parse<S: AsRef<str>>(arguments: &[S]) -> Result<Self, ConfigError> {
        let mut flags = Self::default();
        let mut arguments = arguments.iter().map(AsRef::as_ref);
        let mut positional = Vec::new();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                positional.extend(arguments.by_ref());
            } else if let Some(long) = argument.strip_prefix("--") {
                flags.long(argument, long, &mut arguments)?;
            } else if argument.len() > 1 && argument.starts_with('-') {
                flags.short(argument, &mut arguments)?;
            } else {
                positional.push(argument);
            }
        }
        // Empty ones are what is left of an unset variable in a shell script; kube-proxy lets them pass too.
        if positional.iter().any(|argument| !argument.is_empty()) {
            return Err(ConfigError::Flag(format!(
                "\"kube-proxy\" does not take any arguments, got {positional:?}"
            )));
        }
        Ok(flags)
    }

    /// Whether the flag was on the command line.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// Every flag with its value, sorted by name.
    pub(crate) fn all(&mut self) -> Vec<(&'static str, String)> {
        table::TABLE.iter().map(|flag| (flag.name, (flag.value)(self).show())).collect()
    }

    /// Which given flags are on their way out, with the advice to give.
    pub(crate) fn deprecations(&self) -> Vec<String> {
        [("healthz-port", "--healthz-bind-address"), ("metrics-port", "--metrics-bind-address")]
            .into_iter()
            .filter(|(name, _)| self.given(name))
            .map(|(name, instead)| {
                format!(
                    "Flag --{name} has been deprecated, This flag is deprecated and will be removed in a future \
                     release. Please use {instead} instead."
                )
            })
            .collect()
    }

    fn long<'a>(
        &mut self,
        argument: &str,
        long: &str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), ConfigError> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(ConfigError::Flag(format!("bad flag syntax: {argument}")));
        }
        let name = name.replace('_', "-");
        let flag = table::find(&name).ok_or_else(|| ConfigError::Flag(format!("unknown flag: --{name}")))?;
        let alone = (flag.value)(self).alone();
        let value = match (value, alone) {
            (Some(value), _) => value,
            (None, Some(alone)) => alone,
            (None, None) => rest
                .next()
                .ok_or_else(|| ConfigError::Flag(format!("flag needs an argument: --{}", flag.name)))?,
        };
        self.set(flag, value)
    }

    /// A group of one-letter flags; the one that takes a value takes the rest of the group, or the next argument.
    fn short<'a>(
        &mut self,
        argument: &str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), ConfigError> {
        let mut group = &argument[1..];
        while let Some(letter) = group.chars().next() {
            let flag = table::find_short(letter).ok_or_else(|| {
                ConfigError::Flag(format!("unknown shorthand flag: {letter:?} in {argument}"))
            })?;
            let after = &group[letter.len_utf8()..];
            if let Some(value) = after.strip_prefix('=') {
                return self.set(flag, value);
            }
            let alone = (flag.value)(self).alone();
            if let Some(alone) = alone {
                self.set(flag, alone)?;
                group = after;
                continue;
            }
            let value = if after.is_empty() { rest.next() } else { Some(after) };
            let value = value.ok_or_else(|| {
                ConfigError::Flag(format!("flag needs an argument: {letter:?} in {argument}"))
            })?;
            return self.set(flag, value);
        }
        Ok(())
    }

    fn set(&mut self, flag: &table::Flag, value: &str) -> Result<(), ConfigError> {
        let first = self.given.insert(flag.name);
        (flag.value)(self).set(value, first).map_err(|reason| {
            ConfigError::Flag(format!("invalid argument {value:?} for \"--{}\" flag: {reason}", flag.name))
        })
    }
}

pub(crate) use table::help;

#[cfg(test)]
mod tests;
