//! How the kernel differs from what is intended: what a backend finds when it reads everything back, by Service port.

use std::fmt;

use crate::model::ServicePortName;

/// What kind of difference it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DifferenceKind {
    /// Intended, and not in the kernel.
    Missing,
    /// In the kernel, and intended by nobody.
    Extra,
    /// In the kernel, and otherwise than intended.
    Different,
}

impl DifferenceKind {
    /// One word, as it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
        }
    }
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One way in which the kernel differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The Service port that it concerns; `None`: all of them, or nobody.
    pub owner: Option<ServicePortName>,
    /// What kind it is.
    pub kind: DifferenceKind,
    /// In words: what is missing, too much, or otherwise.
    pub what: String,
    /// The same in the language of the backend's own tools, where they have one.
    pub native: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What somebody else did, or what is not written yet.
    pub differences: Vec<Difference>,
    /// What the running process still owes the past and does by itself: endpoints that drain, chains and elements that
    /// nothing uses any more.
    pub owed: Vec<Difference>,
    /// What could not be compared, and why.
    pub unseen: Vec<String>,
    /// How many objects were compared.
    pub compared: usize,
}

impl Comparison {
    /// Notes a difference.
    pub fn differs(
        &mut self,
        owner: Option<&ServicePortName>,
        kind: DifferenceKind,
        what: impl Into<String>,
        native: Option<String>,
    ) {
        self.differences.push(Difference { owner: owner.cloned(), kind, what: what.into(), native });
    }

    /// Notes something that the running process will do by itself.
    pub fn owes(&mut self, owner: Option<&ServicePortName>, what: impl Into<String>) {
        let kind = DifferenceKind::Extra;
        self.owed.push(Difference { owner: owner.cloned(), kind, what: what.into(), native: None });
    }

    /// By Service port, those of nobody first; each once.
    pub fn settle(&mut self) {
        self.differences.sort();
        self.differences.dedup();
        self.owed.sort();
        self.owed.dedup();
    }

    /// Nothing differs.
    pub fn is_same(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Why the kernel could not be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// This process may not read it.
    #[error(
        "{what} may not be read: {reason}. Run it as root in the node's network namespace (CAP_NET_ADMIN)"
    )]
    NotAllowed {
        /// What was to be read.
        what: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// There is nothing of this mode in the kernel, or no such facility.
    #[error("{what} cannot be read: {reason}. {mend}")]
    NotThere {
        /// What was to be read.
        what: &'static str,
        /// What the kernel or a program said.
        reason: String,
        /// What to do.
        mend: &'static str,
    },
}
