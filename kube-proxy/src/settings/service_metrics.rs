//! Metrics of single Services: off unless a variable asks for them. kube-proxy's configuration has no field for it.

use std::fmt;

/// Which Services: `*`, or `NAMESPACE/*` and `NAMESPACE/NAME`, comma-separated.
const SERVICES: &str = "SWITCHYARD_SERVICE_METRICS";
/// Series of endpoints as well: `true` or `false`.
const ENDPOINTS: &str = "SWITCHYARD_SERVICE_METRICS_ENDPOINTS";
/// How many Service ports and endpoints may have series.
const LIMIT: &str = "SWITCHYARD_SERVICE_METRICS_LIMIT";
/// Have conntrack count bytes (`net.netfilter.nf_conntrack_acct`): `true` or `false`.
const BYTES: &str = "SWITCHYARD_SERVICE_METRICS_BYTES";
/// So many, unless the variable says otherwise: each has five series.
const DEFAULT_LIMIT: usize = 500;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceMetrics {
    allowed: Vec<Pattern>,
    pub(crate) endpoints: bool,
    /// Of Service ports and endpoints together.
    pub(crate) limit: usize,
    pub(crate) bytes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    All,
    Namespace(String),
    Service(String, String),
}

/// A variable whose value means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadVariable {
    name: &'static str,
    value: String,
    allowed: &'static str,
}

impl fmt::Display for BadVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} is not {}", self.name, self.value, self.allowed)
    }
}

impl std::error::Error for BadVariable {}

impl ServiceMetrics {
    /// `None`: nobody asked.
    pub(crate) fn read() -> Result<Option<Self>, BadVariable> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(read: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, BadVariable> {
        let given = |name| read(name).filter(|text| !text.is_empty());
        let Some(text) = given(SERVICES) else { return Ok(None) };
        let mut allowed = Vec::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            allowed.push(match one.split_once('/') {
                None if one == "*" => Pattern::All,
                Some((namespace, "*")) if is_name(namespace) => Pattern::Namespace(namespace.to_owned()),
                Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                    Pattern::Service(namespace.to_owned(), name.to_owned())
                }
                _ => {
                    let allowed = "*, NAMESPACE/* or NAMESPACE/NAME, comma-separated";
                    return Err(BadVariable { name: SERVICES, value: one.to_owned(), allowed });
                }
            });
        }
        let switch = |name| match given(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(BadVariable { name, value: other.to_owned(), allowed: "true or false" }),
        };
        let limit = match given(LIMIT) {
            None => DEFAULT_LIMIT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=100_000).contains(limit))
                .ok_or(BadVariable { name: LIMIT, value: text, allowed: "a number from 1 to 100000" })?,
        };
        let (endpoints, bytes) = (switch(ENDPOINTS)?, switch(BYTES)?);
        Ok((!allowed.is_empty()).then_some(Self { allowed, endpoints, limit, bytes }))
    }

    pub(crate) fn allows(&self, namespace: &str, name: &str) -> bool {
        self.allowed.iter().any(|pattern| match pattern {
            Pattern::All => true,
            Pattern::Namespace(of) => of == namespace,
            Pattern::Service(of, service) => of == namespace && service == name,
        })
    }
}

/// By its characters only: a DNS label or subdomain.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn of(given: &'static [(&str, &str)]) -> Result<Option<ServiceMetrics>, BadVariable> {
        ServiceMetrics::of(|name| {
            given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn they_are_off_unless_asked_for_and_the_list_says_whose() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(SERVICES, "")]), Ok(None));
        let some =
            of(&[(SERVICES, "shop/*, default/web"), (ENDPOINTS, "true")]).expect("good").expect("asked");
        assert!(some.endpoints && !some.bytes);
        assert_eq!(some.limit, DEFAULT_LIMIT);
        assert!(some.allows("shop", "cart") && some.allows("default", "web"));
        assert!(!some.allows("default", "api") && !some.allows("shopping", "cart"));
        assert!(of(&[(SERVICES, "*"), (LIMIT, "7")]).expect("good").expect("asked").allows("a", "b"));
    }

    #[test]
    fn what_means_nothing_is_named() {
        for (given, named) in [
            (&[(SERVICES, "web")][..], SERVICES),
            (&[(SERVICES, "a/b/c")], SERVICES),
            (&[(SERVICES, "*"), (LIMIT, "0")], LIMIT),
            (&[(SERVICES, "*"), (BYTES, "yes")], BYTES),
            (&[(SERVICES, "*"), (ENDPOINTS, "1")], ENDPOINTS),
        ] {
            let error = of(given).expect_err("bad").to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
