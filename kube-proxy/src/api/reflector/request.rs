//! A list or a watch, as the query of a URL.

use std::fmt::Write as _;

/// A resource version. Kubernetes compares them as decimal numbers (KEP-5504); one that is no number compares with none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(Box<str>);

impl Version {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn number(&self) -> Option<u64> {
        self.0.parse().ok()
    }

    pub(crate) fn is_before(&self, other: &Self) -> bool {
        matches!((self.number(), other.number()), (Some(this), Some(other)) if this < other)
    }
}

/// From which state on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// Whatever the server has at hand.
    Any,
    /// This one or a newer one.
    NotBefore(Version),
    /// The newest there is; the server asks its storage.
    Newest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    List {
        from: From,
        /// Where a list in pages goes on.
        page: Option<String>,
        limit: Option<u32>,
    },
    /// The objects as they are, then a mark, then changes.
    Stream {
        from: From,
        seconds: u32,
    },
    Watch {
        from: Version,
        seconds: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) labels: Option<&'static str>,
    pub(crate) fields: Option<String>,
}

impl Request {
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.verb, Verb::List { .. })
    }

    /// Without the question mark.
    pub(crate) fn query(&self) -> String {
        let mut query = Query(String::new());
        match &self.verb {
            Verb::List { page: Some(token), limit, .. } => {
                query.add("continue", token);
                query.number("limit", *limit);
            }
            Verb::List { from, page: None, limit } => {
                query.state(from, true);
                query.number("limit", *limit);
            }
            Verb::Stream { from, seconds } => {
                query.add("watch", "true");
                query.add("sendInitialEvents", "true");
                query.state(from, false);
                query.add("resourceVersionMatch", "NotOlderThan");
                query.add("allowWatchBookmarks", "true");
                query.number("timeoutSeconds", Some(*seconds));
            }
            Verb::Watch { from, seconds } => {
                query.add("watch", "true");
                query.add("resourceVersion", from.as_str());
                query.add("allowWatchBookmarks", "true");
                query.number("timeoutSeconds", Some(*seconds));
            }
        }
        if let Some(labels) = self.labels {
            query.add("labelSelector", labels);
        }
        if let Some(fields) = &self.fields {
            query.add("fieldSelector", fields);
        }
        query.0
    }
}

struct Query(String);

impl Query {
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            // RFC 3986, section 2.3.
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                self.0.push(char::from(byte));
            } else {
                let _ = write!(self.0, "%{byte:02X}");
            }
        }
    }

    fn number(&mut self, name: &str, value: Option<u32>) {
        if let Some(value) = value {
            self.add(name, &value.to_string());
        }
    }

    fn state(&mut self, from: &From, with_match: bool) {
        match from {
            From::Any => self.add("resourceVersion", "0"),
            From::NotBefore(version) => {
                self.add("resourceVersion", version.as_str());
                if with_match {
                    self.add("resourceVersionMatch", "NotOlderThan");
                }
            }
            From::Newest => {}
        }
    }
}
