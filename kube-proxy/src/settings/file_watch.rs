//! Notices that the configuration file has other contents, however they got there.
//!
//! The path is read, not watched: a ConfigMap volume swaps a symlink two levels above the file, which a watch on the
//! file itself never sees. A stat every few seconds costs nothing and sees every way of replacing a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The file as it was when it was last looked at.
#[derive(Debug)]
pub(crate) struct ConfigWatch {
    path: PathBuf,
    stamp: Option<Stamp>,
    text: Option<String>,
}

/// Device, inode, size, and the instants of the last change of the contents and of the inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl ConfigWatch {
    /// Takes the present contents as known.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: stamp(path), text: fs::read_to_string(path).ok() }
    }

    /// Whether the contents differ from those at the last call. A file that is gone has not changed: it is being
    /// replaced, or nobody can say what is wanted now.
    pub(crate) fn poll(&mut self) -> bool {
        let stamp = stamp(&self.path);
        if stamp.is_none() || stamp == self.stamp {
            return false;
        }
        let Ok(text) = fs::read_to_string(&self.path) else {
            return false;
        };
        self.stamp = stamp;
        let changed = self.text.as_ref() != Some(&text);
        self.text = Some(text);
        changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.size(),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("switchyard-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    #[test]
    fn the_swap_of_a_configmap_volume_is_seen() {
        let root = directory("swap");
        for (version, text) in [("v1", "mode: iptables"), ("v2", "mode: nftables")] {
            fs::create_dir(root.join(version)).expect("a directory");
            fs::write(root.join(version).join("config.conf"), text).expect("a file");
        }
        // The layout of a ConfigMap volume: config.conf -> ..data/config.conf, ..data -> v1.
        symlink("v1", root.join("..data")).expect("a link");
        symlink("..data/config.conf", root.join("config.conf")).expect("a link");
        let mut watch = ConfigWatch::new(&root.join("config.conf"));
        assert!(!watch.poll());
        symlink("v2", root.join("..data_tmp")).expect("a link");
        fs::rename(root.join("..data_tmp"), root.join("..data")).expect("a swap");
        assert!(watch.poll());
        assert!(!watch.poll());
        fs::remove_dir_all(&root).expect("an end");
    }

    #[test]
    fn only_other_contents_count_as_a_change() {
        let root = directory("touch");
        let path = root.join("config.conf");
        fs::write(&path, "a").expect("a file");
        let mut watch = ConfigWatch::new(&path);
        fs::write(root.join("new"), "a").expect("a file");
        fs::rename(root.join("new"), &path).expect("a replacement");
        assert!(!watch.poll(), "same contents");
        fs::remove_file(&path).expect("a removal");
        assert!(!watch.poll(), "gone");
        fs::write(&path, "b").expect("a file");
        assert!(watch.poll());
        fs::remove_dir_all(&root).expect("an end");
    }
}
