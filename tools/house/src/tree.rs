//! The modules of a crate, and to which of them a path leads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as File, PathBuf};

use crate::place::line_of;
use crate::source::{self, Path};

/// A module: where its code is, what is below it, and what it hands on under which name.
#[derive(Debug, Default)]
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    /// As the crate names it, without `crate`.
    pub(crate) name: Vec<String>,
    pub(crate) paths: Vec<(Path, usize)>,
    children: Vec<String>,
    handed_on: BTreeMap<String, Vec<String>>,
}

/// All modules that a root leads to.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    modules: BTreeMap<Vec<String>, Module>,
}

impl Tree {
    pub(crate) fn read(root: &File) -> Self {
        let mut tree = Self::default();
        let folder = root.parent().unwrap_or(root).to_owned();
        tree.add(root, &folder, Vec::new());
        tree
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values()
    }

    /// The module that a path in another one leads to; `None` if it leaves the crate.
    pub(crate) fn resolve(&self, from: &Module, words: &[String]) -> Option<&Module> {
        self.resolve_within(&from.name, words, 8)
    }

    fn resolve_within(&self, from: &[String], words: &[String], most: usize) -> Option<&Module> {
        let mut here = from.to_vec();
        let mut rest = words;
        match rest.first()?.as_str() {
            "crate" => {
                here.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    here.pop();
                    rest = &rest[1..];
                }
            }
            first if self.modules.get(&here)?.children.iter().any(|child| child == first) => {}
            _ => return None,
        }
        for (at, word) in rest.iter().enumerate() {
            let module = self.modules.get(&here)?;
            if module.children.contains(word) {
                here.push(word.clone());
            } else if let Some(to) = module.handed_on.get(word).filter(|_| most > 0) {
                let mut to = to.clone();
                to.extend_from_slice(&rest[at + 1..]);
                // A name of another crate's that is handed on counts as the module's own.
                return self.resolve_within(&here, &to, most - 1).or(Some(module));
            } else {
                break;
            }
        }
        self.modules.get(&here)
    }

    /// `below` is the folder in which the files of its children are.
    fn add(&mut self, file: &File, below: &File, name: Vec<String>) {
        let Ok(text) = fs::read_to_string(file) else { return };
        let code = source::without_tests(&source::code(&text));
        self.add_code(code, &text, file, below, name);
    }

    fn add_code(&mut self, mut code: String, text: &str, file: &File, below: &File, name: Vec<String>) {
        let mut children = Vec::new();
        for (at, child) in declared(&code) {
            let mut path = name.clone();
            path.push(child.clone());
            let folder = below.join(&child);
            let opens = code[at..].find(['{', ';']).map(|length| at + length);
            match opens.filter(|opens| code[*opens..].starts_with('{')) {
                // Within the same file.
                Some(opens) => {
                    let end = source::item_end(&code, opens);
                    let (before, inside) = (&code[..opens + 1], &code[opens + 1..end - 1]);
                    let blanked: String =
                        before.chars().map(|one| if one == '\n' { '\n' } else { ' ' }).collect();
                    self.add_code(blanked + inside, text, file, &folder, path);
                    let kept: String =
                        code[at..end].chars().map(|one| if one == '\n' { '\n' } else { ' ' }).collect();
                    code.replace_range(at..end, &kept);
                }
                None => {
                    let beside = below.join(format!("{child}.rs"));
                    let inside = folder.join("mod.rs");
                    self.add(if beside.is_file() { &beside } else { &inside }, &folder, path);
                }
            }
            children.push(child);
        }
        let paths = source::paths(&code);
        let handed_on = paths
            .iter()
            .filter_map(|path| Some((path.public_as.clone()?, path.words.clone())))
            .filter(|(name, _)| name != "*")
            .collect();
        let paths = paths.into_iter().map(|path| (line_of(text, path.at), path));
        let paths = paths.map(|(line, path)| (path, line)).collect();
        let module = Module { file: file.to_owned(), name: name.clone(), paths, children, handed_on };
        self.modules.insert(name, module);
    }
}

/// The modules that code declares, and where.
fn declared(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("mod ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|one| one.is_alphanumeric() || one == '_') {
            continue;
        }
        let rest = &code[at + "mod ".len()..];
        let name: String = rest.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
        let behind = rest[name.len()..].trim_start();
        if !name.is_empty() && (behind.starts_with(';') || behind.starts_with('{')) {
            found.push((at, name));
        }
    }
    // Modules within modules are found when those are looked at.
    let mut end = 0;
    found.retain(|(at, _)| {
        let outer = *at >= end;
        if outer && code[*at..].find(['{', ';']).is_some_and(|length| code[at + length..].starts_with('{')) {
            end = source::item_end(code, *at);
        }
        outer
    });
    found
}
