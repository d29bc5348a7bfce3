//! What the kernel's `recent` match can remember, so that session affinity does not fail in silence.
//!
//! Every endpoint of a Service with affinity has a list of clients. A list is full at `ip_list_tot` clients (100 unless
//! the module was loaded otherwise); then the client that was seen longest ago is forgotten (net/netfilter/xt_recent.c).

use std::{collections::HashSet, fs, io::Read as _, path::PathBuf};

use proxy_core::model::Family;

/// Lists looked at in one check, so that its cost does not grow with the number of Services.
const LISTS_PER_CHECK: usize = 32;

/// How many clients the kernel remembers for one endpoint; `None` if it does not say.
pub fn clients_per_endpoint() -> Option<usize> {
    fs::read_to_string("/sys/module/xt_recent/parameters/ip_list_tot").ok()?.trim().parse().ok()
}

/// Looks through the lists, some at a time, for those that are full.
#[derive(Debug)]
pub(crate) struct AffinityLists {
    family: Family,
    directory: PathBuf,
    limit: Option<usize>,
    next: usize,
    /// Lists that were reported and are full still.
    full: HashSet<String>,
    introduced: bool,
}

impl AffinityLists {
    pub(crate) fn of(family: Family) -> Self {
        // Of the calling thread's network namespace, which need not be the process's.
        Self::new(family, "/proc/thread-self/net/xt_recent".into(), clients_per_endpoint())
    }

    fn new(family: Family, directory: PathBuf, limit: Option<usize>) -> Self {
        Self { family, directory, limit, next: 0, full: HashSet::new(), introduced: false }
    }

    /// Reports lists that have become full.
    pub(crate) fn report(&mut self) {
        let Some(limit) = self.limit else { return };
        let lists = self.lists();
        if !lists.is_empty() && !self.introduced {
            self.introduced = true;
            tracing::info!(
                limit,
                "session affinity remembers this many clients of each endpoint (xt_recent ip_list_tot)"
            );
        }
        for list in self.newly_full(&lists, limit) {
            tracing::warn!(
                chain = list,
                limit,
                "an endpoint has more clients than session affinity can remember: those seen longest ago lose theirs; \
                 raise ip_list_tot of the module xt_recent",
            );
        }
    }

    /// The lists of our endpoints, in the order of their names.
    fn lists(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("KUBE-SEP-")).collect();
        names.sort_unstable();
        names
    }

    fn newly_full(&mut self, lists: &[String], limit: usize) -> Vec<String> {
        if lists.is_empty() {
            self.full.clear();
            return Vec::new();
        }
        let start = self.next % lists.len();
        let checked = lists.iter().cycle().skip(start).take(LISTS_PER_CHECK.min(lists.len()));
        let mut newly = Vec::new();
        for list in checked {
            if self.clients(list) >= limit {
                if self.full.insert(list.clone()) {
                    newly.push(list.clone());
                }
            } else {
                self.full.remove(list);
            }
        }
        self.next = start + LISTS_PER_CHECK;
        newly
    }

    /// One line a client: `src=10.0.0.1 ttl: 64 ..`. The lists of both families are in one directory.
    fn clients(&self, list: &str) -> usize {
        let mut text = Vec::new();
        let read = fs::File::open(self.directory.join(list)).and_then(|mut file| file.read_to_end(&mut text));
        let address = text.split(|&byte| byte == b' ').next().unwrap_or_default();
        let family =
            if address.iter().filter(|&&byte| byte == b':').count() > 1 { Family::V6 } else { Family::V4 };
        // A list that has just gone has no clients.
        if read.is_err() || family != self.family {
            return 0;
        }
        text.iter().filter(|&&byte| byte == b'\n').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(name: &str) -> (AffinityLists, PathBuf) {
        let directory = std::env::temp_dir().join(format!("switchyard-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a new directory");
        (AffinityLists::new(Family::V4, directory.clone(), Some(3)), directory)
    }

    #[test]
    fn a_full_list_is_reported_once_until_it_has_room_again() {
        let (mut watch, directory) = lists("full");
        let write = |list: &str, clients: usize| {
            fs::write(directory.join(list), "src=10.0.0.1 ttl: 64\n".repeat(clients)).expect("written");
        };
        let found = |watch: &mut AffinityLists| {
            let lists = watch.lists();
            watch.newly_full(&lists, 3)
        };
        write("KUBE-SEP-A", 3);
        write("KUBE-SEP-B", 2);
        write("somebody-elses", 3);
        fs::write(directory.join("KUBE-SEP-V6"), "src=fd00:0000::1 ttl: 64\n".repeat(3)).expect("written");
        assert_eq!(found(&mut watch), ["KUBE-SEP-A"]);
        assert_eq!(found(&mut watch), [""; 0]);
        write("KUBE-SEP-A", 2);
        assert_eq!(found(&mut watch), [""; 0]);
        write("KUBE-SEP-A", 3);
        assert_eq!(found(&mut watch), ["KUBE-SEP-A"]);
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn many_lists_are_looked_at_in_turn() {
        let (mut watch, directory) = lists("many");
        for n in 0..100 {
            fs::write(directory.join(format!("KUBE-SEP-{n:03}")), "src=10.0.0.1\n".repeat(3))
                .expect("written");
        }
        let lists = watch.lists();
        let rounds: Vec<usize> = (0..5).map(|_| watch.newly_full(&lists, 3).len()).collect();
        assert_eq!(rounds, [32, 32, 32, 4, 0]);
        fs::remove_dir_all(directory).expect("removed");
    }
}
