//! How many connections each server may hold, within the files that this process may open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::connections::Connections;

/// So many files are asked for where the hard limit allows them; a Go program asks for all.
const WANTED_FILES: u64 = 65_536;
/// Kept for everything but connections to these servers: the API server, netlink, pipes, listeners.
const KEPT: u64 = 256;
/// Where the limit is very low, connections get this many all the same.
const LEAST: u64 = 96;

/// The connections of each server.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    pub(crate) health: Connections,
    pub(crate) metrics: Connections,
    /// All health check node ports share them.
    pub(crate) services: Connections,
    /// Listeners of NodePorts on ::1, and connections to them, each of which takes two files.
    pub(crate) localhost: (usize, usize),
}

impl Capacity {
    /// Raises the limit of open files and shares out what it allows.
    pub(crate) fn of_this_process() -> Self {
        let limit = raise();
        let [health, metrics, services, localhost] = shares(limit);
        tracing::debug!(
            files = limit,
            health,
            metrics,
            services,
            "Connections that the HTTP servers may hold"
        );
        Self {
            health: Connections::new(health),
            metrics: Connections::new(metrics),
            services: Connections::new(services),
            localhost: (localhost / 2, localhost / 4),
        }
    }
}

/// The soft limit of open files after it was raised. Programs that this one starts inherit it.
fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return KEPT + LEAST };
    let wanted = hard.min(WANTED_FILES);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::debug!(%error, "The limit of open files stays as it is");
            soft
        }
    }
}

/// Health, metrics, health check node ports, and NodePorts on ::1.
fn shares(files: u64) -> [usize; 4] {
    let free = files.saturating_sub(KEPT).max(LEAST);
    [free / 4, free / 6, free / 4, free / 3]
        .into_iter()
        .zip([1024, 256, 1024, 16_384])
        .map(|(share, most)| usize::try_from(share).unwrap_or(most).min(most))
        .collect::<Vec<_>>()
        .try_into()
        .expect("as many")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_servers_together_leave_files_for_the_rest() {
        assert_eq!(shares(1_048_576), [1024, 256, 1024, 16_384]);
        assert_eq!(shares(1024), [192, 128, 192, 256]);
        assert_eq!(shares(64), [24, 16, 24, 32]);
        for files in [500, 1024, 2048, 4096, 65_536] {
            let sum: usize = shares(files).iter().sum();
            assert!(sum as u64 + KEPT <= files, "{files}: {sum}");
        }
    }

    #[test]
    fn the_limit_of_files_is_raised_as_far_as_it_may_be() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 300.min(hard), hard).expect("lowered");
        assert_eq!(raise(), hard.min(WANTED_FILES));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("a limit"), (hard.min(WANTED_FILES), hard));
    }
}
