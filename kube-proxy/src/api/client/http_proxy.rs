//! Which proxy the environment asks for on the way to the API server.
//!
//! The rules are those of Go's programs, because the variables are the same: kubeadm copies them from the control plane
//! into kube-proxy's DaemonSet.

use std::net::IpAddr;

use anyhow::Context as _;
use http::Uri;
use ipnet::IpNet;

pub(super) fn from_environment(
    server: &Uri,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Option<Uri>> {
    let first = |names: [&str; 2]| {
        names.into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()))
    };
    let names = if server.scheme_str() == Some("https") {
        ["HTTPS_PROXY", "https_proxy"]
    } else {
        ["HTTP_PROXY", "http_proxy"]
    };
    let Some(proxy) = first(names) else { return Ok(None) };
    if is_direct(server, &first(["NO_PROXY", "no_proxy"]).unwrap_or_default()) {
        return Ok(None);
    }
    let whole = if proxy.contains("://") { proxy.clone() } else { format!("http://{proxy}") };
    let uri = whole.parse().with_context(|| format!("invalid proxy address {proxy:?} in {}", names[0]))?;
    Ok(Some(uri))
}

/// Whether the server is spoken to without a proxy: it is this machine, or the list of exceptions names it.
fn is_direct(server: &Uri, exceptions: &str) -> bool {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_lowercase();
    let usual = if server.scheme_str() == Some("https") { 443 } else { 80 };
    let port = server.port_u16().unwrap_or(usual);
    let ip: Option<IpAddr> = host.parse().ok();
    host == "localhost"
        || ip.is_some_and(|ip| ip.is_loopback())
        || exceptions
            .split(',')
            .map(|part| part.trim().to_lowercase())
            .any(|part| names(&part, &host, ip, port))
}

/// Whether one exception names the server: `*`, a network, an address, or a domain, the last two perhaps with a port.
fn names(exception: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if let Ok(network) = exception.parse::<IpNet>() {
        return ip.is_some_and(|ip| network.contains(&ip));
    }
    let (name, wanted) = match exception.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') || name.ends_with(']') => (name, Some(number)),
        _ => (exception, None),
    };
    if wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = name.parse::<IpAddr>() {
        return ip == Some(address);
    }
    match name {
        "" => false,
        "*" => true,
        _ => {
            let domain = name.strip_prefix('*').unwrap_or(name);
            let inner = domain.strip_prefix('.');
            let suffix = format!(".{}", inner.unwrap_or(domain));
            host.ends_with(&suffix) || (inner.is_none() && host == domain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(server: &str, environment: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let proxy = from_environment(&server.parse().expect("a URL"), variable).expect("a proxy or none");
        proxy.map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_scheme_of_the_server_chooses_the_variable() {
        let both = [("HTTPS_PROXY", "http://secure:3128"), ("http_proxy", "plain:3128")];
        assert_eq!(chosen("https://10.0.0.1:6443", &both).as_deref(), Some("http://secure:3128/"));
        assert_eq!(chosen("http://10.0.0.1:8080", &both).as_deref(), Some("http://plain:3128/"));
        assert_eq!(chosen("https://10.0.0.1:6443", &[("HTTPS_PROXY", "")]), None);
        assert_eq!(chosen("https://127.0.0.1:6443", &both), None);
        assert_eq!(chosen("https://localhost:6443", &both), None);
        assert_eq!(chosen("https://[::1]:6443", &both), None);
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (server, exceptions, direct) in [
            ("https://10.96.0.1:443", "10.96.0.0/12,.svc,", true),
            ("https://10.96.0.1:443", " 10.96.0.1 ", true),
            ("https://10.96.0.1:443", "10.96.0.1:443", true),
            ("https://10.96.0.1:443", "10.96.0.1:444", false),
            ("https://10.96.0.1:443", "10.97.0.0/16,,", false),
            ("https://10.96.0.1:443", "*", true),
            ("https://[fd00::1]:6443", "fd00::/8", true),
            ("https://[fd00::1]:6443", "fd00::1", true),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", true),
            ("https://api.example.org:6443", "example.org", true),
            ("https://api.example.org:6443", ".example.org", true),
            ("https://api.example.org:6443", "*.example.org:6443", true),
            ("https://API.example.org:6443", "api.EXAMPLE.org", true),
            ("https://example.org:6443", ".example.org", false),
            ("https://badexample.org:6443", "example.org", false),
            ("https://api.example.org:6443", "", false),
        ] {
            let environment = [("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", exceptions)];
            assert_eq!(chosen(server, &environment).is_none(), direct, "{server} {exceptions}");
        }
    }
}
