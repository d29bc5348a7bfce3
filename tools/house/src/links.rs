//! Links of the documents, and the paths that they name: each leads to something that is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::place::{files, relative};

/// Every link and path of a Markdown file that leads nowhere.
pub(crate) fn broken(root: &Path) -> Vec<String> {
    let names = file_names(root);
    let mut wrongs = Vec::new();
    for file in files(root, ".md") {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let name = relative(root, &file);
        for (line, target) in targets(&text) {
            if let Err(why) = leads(&file, &text, &target) {
                wrongs.push(format!("{name}:{line}: the link {target:?} leads nowhere: {why}"));
            }
        }
        for (line, path) in named(&text) {
            let known = expanded(&path).into_iter().all(|path| is_there(root, &file, &names, &path));
            if !known {
                wrongs.push(format!("{name}:{line}: there is no `{path}`"));
            }
        }
    }
    wrongs
}

/// `[words](target)`, outside of code.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line;
        while let Some((_, behind)) = rest.split_once("](") {
            let Some((target, after)) = behind.split_once(')') else { break };
            found.push((number, target.to_owned()));
            rest = after;
        }
    }
    found
}

/// Lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence && !line.starts_with("    ")).then_some((number + 1, line))
    })
}

fn leads(file: &Path, text: &str, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let (there, of_target) = if path.is_empty() {
        (file.to_owned(), text.to_owned())
    } else {
        let there = file.parent().unwrap_or(file).join(path);
        let text = fs::read_to_string(&there).unwrap_or_default();
        (there, text)
    };
    if !there.exists() {
        return Err("no such file".to_owned());
    }
    if heading.is_empty() || headings(&of_target).contains(heading) {
        return Ok(());
    }
    Err("no such heading".to_owned())
}

/// The anchors that a Markdown page offers: its headings in lower case, with hyphens for spaces and no other signs.
fn headings(text: &str) -> BTreeSet<String> {
    let lines = prose(text).map(|(_, line)| line).filter(|line| line.starts_with('#'));
    lines
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
            kept.map(|one| if one == ' ' { '-' } else { one }).collect()
        })
        .collect()
}

/// What stands in backticks, or in the tables and drawings of code blocks, and looks like a path of this repository.
fn named(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let quoted = line.split('`').skip(1).step_by(2);
        for word in quoted.filter(|word| looks_like_a_path(word)) {
            found.push((number + 1, word.to_owned()));
        }
    }
    found
}

fn looks_like_a_path(word: &str) -> bool {
    let plain = word.chars().all(|one| one.is_ascii_alphanumeric() || "_-./{},*".contains(one));
    let rust = word.ends_with(".rs");
    let folder = word.contains("/src/") || word.contains("/tests/") || word.starts_with("docs/");
    plain && !word.starts_with('/') && !word.starts_with('.') && (rust || folder)
}

/// `a/{b,c}.rs` -> `a/b.rs` and `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    inside.split(',').flat_map(|one| expanded(&format!("{before}{one}{after}"))).collect()
}

/// From the root, from the page's own folder, from that of its crate's sources, or as the end of some file's path.
fn is_there(root: &Path, file: &Path, names: &BTreeSet<PathBuf>, path: &str) -> bool {
    let beside = file.parent().unwrap_or(root);
    if path.contains('*') {
        let parts: Vec<&str> = path.split('*').collect();
        return names.iter().any(|name| matches(&relative(root, name), &parts));
    }
    [root.join(path), beside.join(path), beside.join("src").join(path)].iter().any(|path| path.exists())
        || names.iter().any(|name| name.ends_with(path))
}

/// Whether the parts follow each other in a name that may begin anywhere.
fn matches(name: &str, parts: &[&str]) -> bool {
    let mut rest = name;
    parts.iter().filter(|part| !part.is_empty()).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

fn file_names(root: &Path) -> BTreeSet<PathBuf> {
    files(root, "").into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths_are_found_in_prose() {
        let text = "# A page\n\nSee [there](b.md#some-heading), `x/src/{a,b}.rs` and `not a path`.\n\n\
                    ```\n[no](link)\n```\n    [nor](this)\n";
        assert_eq!(targets(text), [(3, "b.md#some-heading".to_owned())]);
        assert_eq!(named(text), [(3, "x/src/{a,b}.rs".to_owned())]);
        assert_eq!(expanded("x/src/{a,b}.rs"), ["x/src/a.rs", "x/src/b.rs"]);
    }

    #[test]
    fn what_leads_nowhere_is_told() {
        let folder = std::env::temp_dir().join(format!("house-links-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/src")).expect("the temporary folder is writable");
        let page = "# How it's done\n[good](#how-its-done) [file](a/src/one.rs) [bad](#nothing) [gone](gone.md)\n\
                    `a/src/one.rs` `one.rs` `a/src/*.rs` `a/src/two.rs` `three.rs`\n";
        fs::write(folder.join("page.md"), page).expect("writable");
        fs::write(folder.join("a/src/one.rs"), "").expect("writable");
        let wrongs = broken(&folder);
        fs::remove_dir_all(&folder).expect("it was made");
        let told: Vec<&str> = wrongs.iter().map(|wrong| &**wrong).collect();
        assert_eq!(
            told,
            [
                "page.md:2: the link \"#nothing\" leads nowhere: no such heading",
                "page.md:2: the link \"gone.md\" leads nowhere: no such file",
                "page.md:3: there is no `a/src/two.rs`",
                "page.md:3: there is no `three.rs`",
            ]
        );
    }
}
