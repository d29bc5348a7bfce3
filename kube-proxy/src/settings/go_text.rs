//! Text forms as Go's parsers read and print them: durations, booleans, integers, quantities, IP addresses, CIDRs.
//!
//! Flags and configuration files were written for a Go program, so exactly what it accepts has to be accepted.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A duration in nanoseconds; negative ones can be written, and are refused where they make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct GoDuration(pub(crate) i64);

impl GoDuration {
    pub(crate) const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000_000)
    }

    /// `None` for a negative one.
    pub(crate) fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// Reads `1h2m3.5s`, `300ms`, `-5s` or `0`. A number without a unit is refused.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}");
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: f64 = 0.0;
        let mut exact: i64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let number = &rest[..digits];
            if !number.contains(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
                return Err(invalid());
            }
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit: i64 = match &rest[..letters] {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "" => return Err(format!("missing unit in duration {text:?}")),
                other => return Err(format!("unknown unit {other:?} in duration {text:?}")),
            };
            rest = &rest[letters..];
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
            let whole = whole.checked_mul(unit).ok_or_else(invalid)?;
            exact = exact.checked_add(whole).ok_or_else(invalid)?;
            if !fraction.is_empty() {
                let fraction: f64 = format!("0.{fraction}").parse().map_err(|_| invalid())?;
                total += fraction * unit as f64;
            }
        }
        let nanos = exact.checked_add(total as i64).ok_or_else(invalid)?;
        Ok(Self(if negative { -nanos } else { nanos }))
    }
}

/// As Go prints it: `15m0s`, `1.5s`, `100ms`, `0s`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanos = self.0.unsigned_abs();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, name) = match nanos {
                0..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "µs"),
                _ => (1_000_000, "ms"),
            };
            return write!(f, "{}{name}", decimal(nanos, unit));
        }
        let minutes = nanos / 60_000_000_000;
        let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000);
        match (minutes / 60, minutes % 60) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, minutes) => write!(f, "{minutes}m{seconds}s"),
            (hours, minutes) => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

fn decimal(value: u64, unit: u64) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.to_string().len() - 1;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

/// `1 t T TRUE true True` and their opposites.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not a boolean: must be true or false")),
    }
}

/// Decimal, `0x`, `0o`, `0b` or `0`-octal, with a sign.
pub(crate) fn parse_i32(text: &str) -> Result<i32, String> {
    let invalid = || format!("{text:?} is not a whole number between {} and {}", i32::MIN, i32::MAX);
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(invalid());
    }
    // As in Go: an underscore may stand between digits, and between a prefix and them.
    if digits.ends_with('_') || digits.contains("__") {
        return Err(invalid());
    }
    let lower = digits.to_ascii_lowercase().replace('_', "");
    let magnitude = if let Some(hex) = lower.strip_prefix("0x") {
        i64::from_str_radix(hex, 16)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        i64::from_str_radix(binary, 2)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        i64::from_str_radix(octal, 8)
    } else if lower.len() > 1 && lower.starts_with('0') {
        i64::from_str_radix(&lower[1..], 8)
    } else {
        lower.parse()
    };
    i32::try_from(sign * magnitude.map_err(|_| invalid())?).map_err(|_| invalid())
}

/// A verbosity: a decimal number that fits into 31 bits.
pub(crate) fn parse_level(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(level) if i32::try_from(level).is_ok() && !text.starts_with('+') => Ok(level),
        _ => Err(format!("{text:?} is not a verbosity: must be a number from 0 to {}", i32::MAX)),
    }
}

/// A number of bytes such as `64Ki`, `10M` or `0`.
pub(crate) fn parse_quantity(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a quantity: must be a number of bytes such as 0, 512Ki or 10M");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
    let unit: u64 = match &text[digits..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    number.checked_mul(unit).ok_or_else(invalid)
}

/// An address; leading zeros of IPv4 are decimal, as Kubernetes still reads them, and `::ffff:a.b.c.d` is IPv4.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some(addr.to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = if digits {
            part.parse::<u64>().ok()?.try_into().ok()?
        } else {
            return None;
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A network; host bits are cleared.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNet> {
    let (addr, bits) = text.split_once('/')?;
    if bits.is_empty() || !bits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let bits = bits.parse().ok()?;
    let net = match (parse_ip(addr)?, addr.contains(':')) {
        (IpAddr::V4(addr), false) => Ipv4Net::new(addr, bits).ok()?.into(),
        (IpAddr::V4(addr), true) => Ipv6Net::new(addr.to_ipv6_mapped(), bits).ok()?.into(),
        (IpAddr::V6(addr), _) => Ipv6Net::new(addr, bits).ok()?.into(),
    };
    Some(IpNet::trunc(&net))
}

/// Splits `host:port` or `[host]:port` without judging either part.
pub(crate) fn split_host_port(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((host, port.strip_prefix(':')?)).filter(|(_, port)| !port.contains(':'));
    }
    let (host, port) = text.rsplit_once(':')?;
    (!host.contains([':', ']', '['])).then_some((host, port))
}

/// `IP:port`, with a port from 1 to 65535.
pub(crate) fn parse_ip_port(text: &str) -> Result<SocketAddr, &'static str> {
    let (host, port) = split_host_port(text).ok_or("must be IP:port")?;
    let addr = parse_ip(host).ok_or("must be IP:port with a valid IP")?;
    match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok(SocketAddr::new(addr, port)),
        _ => Err("must be IP:port with a port from 1 to 65535"),
    }
}

/// Appends the port to an address that has none; anything else is left for validation to judge.
pub(crate) fn with_port(text: &str, port: u16) -> String {
    if split_host_port(text).is_some() {
        return text.to_owned();
    }
    match parse_ip(text) {
        Some(_) if text.contains(':') => format!("[{text}]:{port}"),
        Some(_) => format!("{text}:{port}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_go_does() {
        for (text, nanos, printed) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("15m", 900_000_000_000, "15m0s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("1h30m5s", 5_405_000_000_000, "1h30m5s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("100ms", 100_000_000, "100ms"),
            (".5m", 30_000_000_000, "30s"),
            ("1500us", 1_500_000, "1.5ms"),
            ("-5s", -5_000_000_000, "-5s"),
            ("2h22m", 8_520_000_000_000, "2h22m0s"),
            ("7ns", 7, "7ns"),
        ] {
            assert_eq!(GoDuration::parse(text), Ok(GoDuration(nanos)), "{text}");
            assert_eq!(GoDuration(nanos).to_string(), printed);
        }
        for text in ["", "5", "s", "1x", "1..5s", "-", "1h 5m", "99999999999h"] {
            assert!(GoDuration::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn integers_may_be_hexadecimal_octal_or_binary() {
        for (text, value) in [("14", 14), ("0x0e", 14), ("016", 14), ("0b1110", 14), ("-999", -999), ("0", 0)]
        {
            assert_eq!(parse_i32(text), Ok(value), "{text}");
        }
        for text in ["", "x", "1.0", "2147483648", "--1", "0x", "9a"] {
            assert!(parse_i32(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_with_leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.0.0.008"), Some(IpAddr::from([10, 0, 0, 8])));
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(parse_ip("fd00::1"), "fd00::1".parse().ok());
        for text in ["", "10.0.0", "10.0.0.256", "10.0.0.0.1", "node-1", "10.0.0.+1"] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits() {
        assert_eq!(parse_cidr("10.1.2.3/8").map(|net| net.to_string()).as_deref(), Some("10.0.0.0/8"));
        assert_eq!(parse_cidr("fd00::1/64").map(|net| net.to_string()).as_deref(), Some("fd00::/64"));
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "primary", "fd00::/129", "10.0.0.0/+8"] {
            assert_eq!(parse_cidr(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_port_is_appended_only_where_it_is_missing() {
        assert_eq!(with_port("0.0.0.0", 10256), "0.0.0.0:10256");
        assert_eq!(with_port("::", 10256), "[::]:10256");
        assert_eq!(with_port("[::1]:5", 10256), "[::1]:5");
        assert_eq!(with_port("nonsense", 10256), "nonsense");
    }

    #[test]
    fn socket_addresses_need_both_parts() {
        assert_eq!(parse_ip_port("127.0.0.1:10249"), Ok(SocketAddr::from(([127, 0, 0, 1], 10249))));
        assert_eq!(parse_ip_port("[::1]:1"), Ok("[::1]:1".parse().expect("an address")));
        for text in ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "localhost:80", "::1:80", ":80"] {
            assert!(parse_ip_port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn quantities_have_units() {
        assert_eq!(parse_quantity("0"), Ok(0));
        assert_eq!(parse_quantity("64Ki"), Ok(65_536));
        assert_eq!(parse_quantity("2M"), Ok(2_000_000));
        assert!(parse_quantity("ten").is_err() && parse_quantity("1Zi").is_err());
    }
}
