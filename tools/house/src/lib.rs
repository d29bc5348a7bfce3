//! The repository's own rules, as far as a program can see whether they are kept.
//!
//! - No circle of files that import each other, and no import that runs up between the rooms (folders) of a crate:
//!   [`imports`]. The order of the rooms is data that a reviewer reads: `tools/house/rooms`.
//! - Links and paths of the documents lead somewhere: [`links`].
//! - No test judges how long something took: [`clocks`].

#![warn(missing_docs)]

pub mod clocks;
pub mod imports;
pub mod links;
mod place;
mod rooms;
mod source;
mod tree;

use std::fs;
use std::path::Path;

use rooms::Rooms;

/// Every break of a rule in the repository at `root`.
pub fn check(root: &Path) -> Vec<String> {
    let mut wrongs = Vec::new();
    let rooms = fs::read_to_string(root.join("tools/house/rooms")).unwrap_or_default();
    let rooms = Rooms::parse(&rooms, &mut wrongs);
    for name in crates(root) {
        let folder = root.join(&name);
        for graph in imports::graphs(&folder) {
            wrongs.extend(imports::circles(&name, &graph));
            if let Some(order) = rooms.of(&name) {
                wrongs.extend(imports::upward(&name, &graph, order));
            }
        }
        wrongs.extend(clocks::judged(root, &folder));
    }
    wrongs.extend(links::broken(root));
    wrongs
}

/// For each crate its rooms, and whom each of them imports.
pub fn floors(root: &Path) -> String {
    let mut text = String::new();
    for name in crates(root) {
        for graph in imports::graphs(&root.join(&name)) {
            text += &format!("[{name}]\n");
            for (room, below) in imports::rooms(&graph) {
                text += &format!("{room}: {}\n", below.into_iter().collect::<Vec<_>>().join(" "));
            }
        }
    }
    text
}

/// The folders of the repository with a crate in them.
fn crates(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.extend(["integration/vm".to_owned(), "tools/house".to_owned()]);
    names.retain(|name| root.join(name).is_dir());
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_repository_keeps_its_rules() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders deep");
        let wrongs = super::check(root);
        assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    }

    #[test]
    fn the_crates_of_the_workspace_are_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders deep");
        let crates = super::crates(root);
        for name in ["proxy-core", "backend-nft", "kube-proxy", "integration"] {
            assert!(crates.iter().any(|found| found == name), "{name} is not among {crates:?}");
        }
    }
}
