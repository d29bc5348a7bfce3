//! A control group for a contender and its children: the kernel charges it with the memory that it allocates on their
//! behalf, rules among it, and with nobody else's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::interrupt;

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A mounted hierarchy in which memory may be accounted for.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Where this process is in it.
    own: PathBuf,
    top: PathBuf,
}

impl ControlGroup {
    /// `None` on a machine that has none, or none that we may make.
    pub(crate) fn create() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        hierarchies(&groups, &mounts).into_iter().find_map(|hierarchy| Self::within(&hierarchy))
    }

    fn within(hierarchy: &Hierarchy) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("scale-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let group = Self { folder: hierarchy.parent()?.join(name), version: hierarchy.version };
        fs::create_dir(&group.folder).ok()?;
        interrupt::remember_folder(&group.folder);
        group.kernel_bytes().is_ok().then_some(group)
    }

    /// From now on what the kernel allocates for this process and its children is charged to the group.
    pub(crate) fn add(&self, process: u32) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), process.to_string())
    }

    /// What the kernel holds for itself on the group's behalf.
    pub(crate) fn kernel_bytes(&self) -> io::Result<u64> {
        let (file, key) = match self.version {
            Version::One => ("memory.kmem.usage_in_bytes", None),
            // Since Linux 5.18.
            Version::Two => ("memory.stat", Some("kernel ")),
        };
        let text = fs::read_to_string(self.folder.join(file))?;
        let line = match key {
            None => Some(&*text),
            Some(key) => text.lines().find_map(|line| line.strip_prefix(key)),
        };
        let bytes = line.and_then(|number| number.trim().parse().ok());
        bytes.ok_or_else(|| io::Error::other(format!("{file} has no figure of the kernel's memory")))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Whoever is still in it keeps it.
        drop(fs::remove_dir(&self.folder));
        interrupt::forget_folder(&self.folder);
    }
}

impl Hierarchy {
    /// Where groups can be made whose memory is accounted for. In version 2 that is below a group that says so, and such
    /// a group holds no processes, so it is none but an ancestor of our own.
    fn parent(&self) -> Option<&Path> {
        let exists = |path: &&Path| path.starts_with(&self.top) && path.is_dir();
        self.own.ancestors().filter(exists).find(|path| match self.version {
            Version::One => true,
            Version::Two => fs::read_to_string(path.join("cgroup.subtree_control"))
                .is_ok_and(|all| all.split_whitespace().any(|one| one == "memory")),
        })
    }
}

/// Reads /proc/self/cgroup and /proc/self/mountinfo; see cgroups(7) and proc_pid_mountinfo(5).
fn hierarchies(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let own = |version| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let found = match version {
                Version::One => controllers.split(',').any(|controller| controller == "memory"),
                Version::Two => controllers.is_empty(),
            };
            found.then_some(path)
        })
    };
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let (mut mount, mut kind) = (mount.split(' ').skip(3), kind.split(' '));
            let (root, top) = (mount.next()?, PathBuf::from(mount.next()?));
            let version = match (kind.next()?, kind.nth(1)?) {
                ("cgroup2", _) => Version::Two,
                ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::One,
                _ => return None,
            };
            let path = Path::new(own(version)?);
            let below = path.strip_prefix(root).unwrap_or(path);
            Some(Hierarchy { version, own: top.join(below.strip_prefix("/").unwrap_or(below)), top })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Hierarchy, Version, hierarchies};

    #[test]
    fn both_versions_are_found_where_they_are_mounted() {
        let groups = "4:memory:/box/one\n1:cpu:/\n0::/user.slice/session\n";
        let mounts = "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                      33 20 0:29 / / rw - ext4 /dev/sda rw\n";
        let at = |version, own: &str, top: &str| Hierarchy {
            version,
            own: PathBuf::from(own),
            top: PathBuf::from(top),
        };
        assert_eq!(
            hierarchies(groups, mounts),
            [
                at(Version::One, "/sys/fs/cgroup/memory/box/one", "/sys/fs/cgroup/memory"),
                at(Version::Two, "/sys/fs/cgroup/unified/user.slice/session", "/sys/fs/cgroup/unified"),
            ]
        );
    }

    #[test]
    fn a_mount_that_shows_a_part_of_the_hierarchy_only_is_joined_right() {
        let mounts = "31 20 0:27 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = hierarchies("4:memory:/box/one\n", mounts);
        assert_eq!(found[0].own, PathBuf::from("/sys/fs/cgroup/memory/one"));
    }
}
