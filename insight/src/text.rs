//! Values as texts, for files and for people.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use proxy_core::model::{Family, Protocol};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in time, to the microsecond; RFC 3339 in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Timestamp);

impl Time {
    /// So many microseconds after 1970, or before; what no calendar holds becomes the nearest that one does.
    pub fn from_micros(micros: i64) -> Self {
        let bound = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Self(Timestamp::from_microsecond(micros).unwrap_or(bound))
    }

    /// Microseconds since 1970.
    pub fn micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// Whole seconds since an earlier time; 0 if that is later.
    pub fn seconds_since(self, earlier: Self) -> u64 {
        u64::try_from((self.micros() - earlier.micros()) / 1_000_000).unwrap_or(0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| D::Error::custom(format!("{text:?} is no time")))
    }
}

/// A duration as people say it: `5s`, `3m`, `2h`, `4d`, two parts at most.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if !seconds.is_multiple_of(60) => format!("{minutes}m{}s", seconds % 60),
        120..10_800 => format!("{minutes}m"),
        10_800..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// As in Kubernetes' objects.
pub const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// In any case of letters.
pub fn parse_protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|known| known.as_str().eq_ignore_ascii_case(text))
}

/// As in Kubernetes' objects.
pub const fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn parse_family(text: &str) -> Option<Family> {
    Family::BOTH.into_iter().find(|known| family(*known).eq_ignore_ascii_case(text))
}

/// For serde: a list of values that are written as texts.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(
        all: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(all.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr,
        D: Deserializer<'de>,
    {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let wrong = |text: &str| D::Error::custom(format!("{text:?} is not what is expected here"));
        texts.iter().map(|text| text.parse().map_err(|_| wrong(text))).collect()
    }
}

/// For serde: a family by its name.
pub(crate) mod of_family {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(family: &Family, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self::family(*family))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Family, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_family(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no family")))
    }
}

/// For serde: a protocol by its name.
pub(crate) mod of_protocol {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self::protocol(*protocol))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_protocol(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no protocol")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (7260, "121m"),
            (11_000, "3h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        let time = Time::from_micros(1_764_587_347_123_456);
        assert_eq!(serde_json::to_string(&time).expect("text"), "\"2025-12-01T11:09:07.123456Z\"");
        let read: Time = serde_json::from_str("\"2025-12-01T11:09:07.123456Z\"").expect("a time");
        assert_eq!(read, time);
        assert!(serde_json::from_str::<Time>("\"noon\"").is_err());
        assert!(Time::from_micros(i64::MAX) > time, "no calendar holds it");
    }
}
