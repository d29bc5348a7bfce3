//! What a flag's value may look like, for every type that pflag gives kube-proxy's flags.

use std::collections::BTreeMap;

use crate::settings::{
    go_text::{GoDuration, parse_bool, parse_i32, parse_ip, parse_level, parse_quantity, split_host_port},
    version,
};

/// A variable that a flag sets.
pub(super) trait FlagValue {
    /// The type's name in the help text; empty for booleans.
    fn kind(&self) -> &'static str;

    /// Takes one occurrence; `first` is false when the flag was given before.
    fn set(&mut self, text: &str, first: bool) -> Result<(), String>;

    fn show(&self) -> String;

    /// The value of the flag when it stands alone; `None`: it needs one.
    fn alone(&self) -> Option<&'static str> {
        None
    }
}

impl FlagValue for bool {
    fn kind(&self) -> &'static str {
        ""
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = parse_bool(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn alone(&self) -> Option<&'static str> {
        Some("true")
    }
}

impl FlagValue for String {
    fn kind(&self) -> &'static str {
        "string"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        text.clone_into(self);
        Ok(())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl FlagValue for i32 {
    fn kind(&self) -> &'static str {
        "int32"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = parse_i32(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl FlagValue for f32 {
    fn kind(&self) -> &'static str {
        "float32"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        let number = text.parse().ok().filter(|number: &Self| number.is_finite());
        *self = number.ok_or_else(|| format!("{text:?} is not a number"))?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl FlagValue for GoDuration {
    fn kind(&self) -> &'static str {
        "duration"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = Self::parse(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl FlagValue for backend_ipvs::Binding {
    fn kind(&self) -> &'static str {
        "routes|addresses"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = text.parse::<Self>().map_err(|error| error.to_string())?;
        Ok(())
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

/// A comma-separated list; further occurrences append, the first one replaces the default.
impl FlagValue for Vec<String> {
    fn kind(&self) -> &'static str {
        "strings"
    }

    fn set(&mut self, text: &str, first: bool) -> Result<(), String> {
        let items =
            text.split(',').filter(|_| !text.is_empty()).map(|item| item.trim_matches('"').to_owned());
        if first {
            self.clear();
        }
        self.extend(items);
        Ok(())
    }

    fn show(&self) -> String {
        format!("[{}]", self.join(","))
    }
}

impl FlagValue for Option<Vec<String>> {
    fn kind(&self) -> &'static str {
        "strings"
    }

    fn set(&mut self, text: &str, first: bool) -> Result<(), String> {
        self.get_or_insert_default().set(text, first)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "[]".to_owned(), FlagValue::show)
    }
}

/// `A=true,B=false`; occurrences add up.
impl FlagValue for BTreeMap<String, bool> {
    fn kind(&self) -> &'static str {
        "mapStringBool"
    }

    fn set(&mut self, text: &str, first: bool) -> Result<(), String> {
        if first {
            self.clear();
        }
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("malformed pair {pair:?}: must be name=true or name=false"))?;
            let value =
                parse_bool(value.trim()).map_err(|error| format!("invalid value of {name}: {error}"))?;
            self.insert(name.trim().to_owned(), value);
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }
}

/// A verbosity.
impl FlagValue for u32 {
    fn kind(&self) -> &'static str {
        "Level"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = parse_level(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// `pattern=N,...`; occurrences add up.
impl FlagValue for Vec<(String, u32)> {
    fn kind(&self) -> &'static str {
        "pattern=N,..."
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        for item in text.split(',').filter(|item| !item.is_empty()) {
            match item.split_once('=') {
                Some((pattern, level))
                    if !pattern.is_empty() && !level.is_empty() && !level.contains('=') =>
                {
                    self.push((pattern.to_owned(), parse_level(level)?));
                }
                _ => return Err(format!("{item:?} does not have the pattern=N format")),
            }
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.iter().map(|(pattern, level)| format!("{pattern}={level}")).collect::<Vec<_>>().join(",")
    }
}

/// A text that is checked when it is set; `kind` and `check` say how.
pub(super) struct Checked<'a> {
    pub(super) text: &'a mut String,
    pub(super) kind: &'static str,
    pub(super) check: fn(&str) -> Result<(), String>,
}

impl FlagValue for Checked<'_> {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        (self.check)(text)?;
        text.clone_into(self.text);
        Ok(())
    }

    fn show(&self) -> String {
        self.text.clone()
    }
}

/// Empty means the default.
pub(super) fn ip_or_empty(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { ip(text) }
}

fn ip(text: &str) -> Result<(), String> {
    if parse_ip(text).is_some() { Ok(()) } else { Err(format!("{text:?} is not a valid IP address")) }
}

/// An address with or without a port; empty is allowed.
pub(super) fn ip_port(text: &str) -> Result<(), String> {
    if text.is_empty() || parse_ip(text).is_some() {
        return Ok(());
    }
    let (host, port) =
        split_host_port(text).ok_or_else(|| format!("{text:?} is not in a valid format (ip or ip:port)"))?;
    ip(host)?;
    port.parse::<u16>().map(drop).map_err(|_| format!("{port:?} is not a valid number"))
}

pub(super) fn quantity(text: &str) -> Result<(), String> {
    parse_quantity(text).map(drop)
}

/// Whether what follows the three numbers of a version is no part of them.
fn ends_a_version(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.')
}

/// What `--version` asks for. A version of the release that this program stands in for asks for nothing: kube-proxy
/// then calls itself by that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum VersionRequest {
    #[default]
    None,
    Short,
    Raw,
}

impl FlagValue for VersionRequest {
    fn kind(&self) -> &'static str {
        "version[=true]"
    }

    fn set(&mut self, text: &str, _: bool) -> Result<(), String> {
        *self = match text {
            "raw" => Self::Raw,
            _ => match parse_bool(text) {
                Ok(true) => Self::Short,
                Ok(false) => Self::None,
                Err(_) if text.strip_prefix(version::COMPATIBLE).is_some_and(ends_a_version) => Self::None,
                Err(_) if text.starts_with('v') => {
                    return Err(format!(
                        "version {text:?} must match major/minor/patch of default version {:?}",
                        version::COMPATIBLE
                    ));
                }
                Err(_) => {
                    return Err(format!("{text:?} is not a version request: must be true, false or raw"));
                }
            },
        };
        Ok(())
    }

    fn show(&self) -> String {
        match self {
            Self::None => "false",
            Self::Short => "true",
            Self::Raw => "raw",
        }
        .to_owned()
    }

    fn alone(&self) -> Option<&'static str> {
        Some("true")
    }
}
