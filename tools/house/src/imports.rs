//! Who imports whom within a crate: no circle of files, and no import that runs up between its rooms.
//!
//! An import is any path that leads to another file of the crate: in `use`, or in the middle of code. A name that a module
//! hands on (`pub use`) leads to where it comes from. Code for tests may import what it likes. A folder's own file (`mod.rs`,
//! or `a.rs` beside `a/`) may hold what the files in the folder share: that they import it closes no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::rooms::Order;
use crate::tree::{Module, Tree};

/// An import: from which file, at which line, of which file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    from: PathBuf,
    to: PathBuf,
    line: usize,
    /// The first part of the modules' names; nothing for the crate's own file.
    rooms: (String, String),
}

/// All imports of a crate or program, each pair of files once.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    imports: BTreeMap<(PathBuf, PathBuf), Import>,
}

/// The room of the crate's own file.
const ROOF: &str = "crate";

/// One for the library and one for each program of a crate.
pub(crate) fn graphs(folder: &Path) -> Vec<Graph> {
    let source = folder.join("src");
    let roots = ["lib.rs", "main.rs"].map(|name| source.join(name)).into_iter().filter(|file| file.is_file());
    roots.map(|root| Graph::of(&Tree::read(&root), folder)).collect()
}

impl Graph {
    fn of(tree: &Tree, folder: &Path) -> Self {
        let mut graph = Self::default();
        for module in tree.modules() {
            for (path, line) in &module.paths {
                // To hand a name on is not to use it.
                let Some(to) = tree.resolve(module, &path.words).filter(|_| path.public_as.is_none()) else {
                    continue;
                };
                if to.file != module.file {
                    graph.add(folder, module, to, *line);
                }
            }
        }
        graph
    }

    fn add(&mut self, folder: &Path, from: &Module, to: &Module, line: usize) {
        let room = |module: &Module| module.name.first().map_or_else(|| ROOF.to_owned(), Clone::clone);
        let short = |file: &Path| file.strip_prefix(folder).unwrap_or(file).to_owned();
        let import =
            Import { from: short(&from.file), to: short(&to.file), line, rooms: (room(from), room(to)) };
        self.imports.entry((import.from.clone(), import.to.clone())).or_insert(import);
    }

    /// What a file imports beside its own folder's file.
    fn below(&self, file: &Path) -> Vec<&Import> {
        self.counted().filter(|import| import.from == file).collect()
    }

    fn counted(&self) -> impl Iterator<Item = &Import> {
        self.imports.values().filter(|import| !owns(&import.to, &import.from))
    }

    /// The shortest way from one file to another along imports.
    fn way(&self, from: &Path, to: &Path) -> Option<Vec<&Import>> {
        let mut seen = BTreeSet::from([from.to_owned()]);
        let mut ways: Vec<Vec<&Import>> = vec![Vec::new()];
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                let end = way.last().map_or(from, |import| &import.to);
                for import in self.below(end) {
                    let mut next = way.clone();
                    next.push(import);
                    if import.to == to {
                        return Some(next);
                    }
                    if seen.insert(import.to.clone()) {
                        longer.push(next);
                    }
                }
            }
            ways = longer;
        }
        None
    }
}

/// Each circle once.
pub(crate) fn circles(name: &str, graph: &Graph) -> Vec<String> {
    let mut told: BTreeSet<BTreeSet<&Path>> = BTreeSet::new();
    let mut wrongs = Vec::new();
    for import in graph.counted() {
        let Some(back) = graph.way(&import.to, &import.from) else { continue };
        let files: BTreeSet<&Path> = back.iter().map(|step| &*step.from).chain([&*import.from]).collect();
        if told.insert(files) {
            let steps: Vec<String> = std::iter::once(&import)
                .chain(back.iter())
                .map(|step| format!("{}:{} imports {}", step.from.display(), step.line, step.to.display()))
                .collect();
            wrongs.push(format!("{name}: a circle: {}", steps.join("; ")));
        }
    }
    wrongs
}

/// Whether a file is the folder's own, and the other one of that folder.
fn owns(file: &Path, other: &Path) -> bool {
    let folder = if file.file_name().is_some_and(|name| name == "mod.rs" || name == "lib.rs") {
        file.parent().map(Path::to_owned)
    } else {
        Some(file.with_extension(""))
    };
    folder.is_some_and(|folder| other.starts_with(folder))
}

/// Every import from a room to one that is not below it, and every room that the order does not name.
pub(crate) fn upward(name: &str, graph: &Graph, order: &Order) -> Vec<String> {
    let mut wrongs = BTreeSet::new();
    for Import { from, to, line, rooms: (above, below) } in graph.imports.values() {
        // The crate's own file brings all together.
        if above == below || above == ROOF {
            continue;
        }
        match (order.get(above), order.get(below)) {
            (Some(above), Some(below)) if above < below => {}
            (Some(_), Some(_)) => {
                wrongs.insert(format!(
                    "{name}: {}:{line} imports {}: {below} is not below {above} in tools/house/rooms",
                    from.display(),
                    to.display()
                ));
            }
            (known, _) => {
                let unknown = if known.is_some() { below } else { above };
                wrongs.insert(format!("{name}: tools/house/rooms does not say where {unknown} is"));
            }
        }
    }
    wrongs.into_iter().collect()
}

/// The rooms, and whom each imports.
pub(crate) fn rooms(graph: &Graph) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut rooms: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Import { rooms: (above, below), .. } in graph.imports.values() {
        rooms.entry(below).or_default();
        if above != below {
            rooms.entry(above).or_default().insert(below);
        }
    }
    rooms
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::rooms::Rooms;

    /// A crate of these files below `src`.
    fn graph(name: &str, files: &[(&str, &str)]) -> Graph {
        let folder = std::env::temp_dir().join(format!("house-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = folder.join("src").join(path);
            fs::create_dir_all(path.parent().expect("below src")).expect("the temporary folder is writable");
            fs::write(path, text).expect("the temporary folder is writable");
        }
        let graph = graphs(&folder).remove(0);
        fs::remove_dir_all(folder).expect("it was made");
        graph
    }

    #[test]
    fn a_circle_is_named_with_its_lines_whatever_it_goes_through() {
        let graph = graph(
            "circle",
            &[
                ("lib.rs", "mod a;\nmod b;\nmod c;\npub use c::C;\n"),
                ("a.rs", "use crate::b::B;\npub struct A;\n"),
                ("b.rs", "\nfn f() { super::C::g() }\npub struct B;\n"),
                ("c.rs", "pub struct C;\nmod d;\n"),
                ("c/d.rs", "use super::C;\nuse crate::a::{self, A};\n"),
            ],
        );
        assert_eq!(circles("x", &graph), Vec::<String>::new(), "c knows nothing of d");
        let graph = self::graph(
            "circle",
            &[
                ("lib.rs", "mod a;\nmod b;\nmod c;\npub use c::C;\n"),
                ("a.rs", "use crate::b::B;\npub struct A;\n"),
                ("b.rs", "\nfn f() { super::C::g() }\npub struct B;\n"),
                ("c.rs", "use crate::a::A;\npub struct C;\n"),
            ],
        );
        assert_eq!(
            circles("x", &graph),
            [
                "x: a circle: src/a.rs:1 imports src/b.rs; src/b.rs:2 imports src/c.rs; src/c.rs:1 imports src/a.rs"
            ]
        );
    }

    #[test]
    fn two_that_import_each_other_are_a_circle_and_tests_are_free() {
        let files =
            |b| [("main.rs", "mod a;\nmod b;\nfn main() {}\n"), ("a.rs", "use crate::b;\n"), ("b.rs", b)];
        let free = "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n";
        assert_eq!(circles("x", &graph("pair", &files(free))), Vec::<String>::new());
        assert_eq!(circles("x", &graph("pair", &files("use super::a;\n"))).len(), 1);
    }

    #[test]
    fn imports_run_down_between_rooms_and_each_room_is_named() {
        let graph = graph(
            "floors",
            &[
                ("lib.rs", "mod plan;\nmod kernel;\nmod schema;\n"),
                ("plan/mod.rs", "mod draft;\n"),
                ("plan/draft.rs", "use crate::schema::S;\n"),
                ("schema.rs", "use crate::kernel::K;\npub struct S;\n"),
                ("kernel.rs", "pub struct K;\n"),
            ],
        );
        let mut wrongs = Vec::new();
        let rooms = Rooms::parse(
            "[x]\nplan\nschema\nkernel\n[y]\nplan kernel\nschema\n[z]\nplan\nschema\n",
            &mut wrongs,
        );
        assert_eq!(wrongs, Vec::<String>::new());
        assert_eq!(upward("x", &graph, rooms.of("x").expect("named")), Vec::<String>::new());
        let up = upward("y", &graph, rooms.of("y").expect("named"));
        assert!(matches!(&*up, [one] if one.contains("src/schema.rs:1 imports src/kernel.rs")), "{up:?}");
        let unnamed = upward("z", &graph, rooms.of("z").expect("named"));
        assert_eq!(unnamed, ["z: tools/house/rooms does not say where kernel is"]);
    }
}
