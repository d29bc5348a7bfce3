//! As much of Rust's syntax as is needed to see imports: comments, strings and code for tests are blanked out, paths are
//! read off what is left.

/// The same text with comments, strings and characters blanked out; lines and places stay.
pub(crate) fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !in_word(bytes, at) => match raw_string_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            b'\'' => match character_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Code in which every item under `#[cfg(test)]` is blanked out too.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(begin) = code[from..].find(MARK).map(|at| from + at) {
        let end = item_end(code, begin + MARK.len());
        blank(&mut out[begin..end]);
        from = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where an item ends: at its semicolon, or at the end of its block.
pub(crate) fn item_end(code: &str, from: usize) -> usize {
    let bytes = code.as_bytes();
    let mut depth = 0;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

/// A path that code names: where, which words, and whether it is handed on (`pub use`) under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) at: usize,
    pub(crate) words: Vec<String>,
    pub(crate) public_as: Option<String>,
}

/// All paths: those of `use`, and those in between. How far something is visible (`pub(in a::b)`) is no path.
pub(crate) fn paths(code: &str) -> Vec<Path> {
    let code = &without_visibility(code);
    let mut found = Vec::new();
    let mut rest = code.as_bytes().to_vec();
    for (at, public) in uses(code) {
        let end = code[at..].find(';').map_or(code.len(), |length| at + length);
        let mut expanded = Vec::new();
        expand(&code[at + "use".len()..end], &[], &mut expanded);
        found.extend(expanded.into_iter().map(|(words, name)| Path {
            at,
            words,
            public_as: public.then_some(name),
        }));
        blank(&mut rest[at..end]);
    }
    let rest = String::from_utf8_lossy(&rest).into_owned();
    found.extend(chains(&rest));
    found
}

fn without_visibility(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (at, mark) in code.match_indices("pub(in ") {
        let end = code[at..].find(')').map_or(code.len(), |length| at + length);
        // `pub` stays: what is handed on is.
        blank(&mut out[at + "pub".len()..(end + 1).min(code.len()).max(at + mark.len())]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where each `use` is, and whether what it brings is visible elsewhere.
fn uses(code: &str) -> Vec<(usize, bool)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].trim_end();
        let begins =
            before.is_empty() || before.ends_with([';', '}', '{', ']', ')']) || before.ends_with("pub");
        if in_word(code.as_bytes(), at) || !begins {
            continue;
        }
        // `pub`, `pub(crate)`, `pub(super)`, `pub(in ...)`.
        let line = before.rsplit(['\n', ';', '}']).next().unwrap_or_default().trim();
        found.push((at, code[..at].ends_with(' ') && line.starts_with("pub")));
    }
    found
}

/// `a::{b, c::{self, d as e}}` -> its paths, each with the name that it has here.
fn expand(tree: &str, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let mut words = before.to_vec();
        words.extend(split(&tree[..open]));
        let inside = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
        for part in parts(inside) {
            expand(part, &words, found);
        }
        return;
    }
    let (path, name) = match tree.split_once(" as ") {
        Some((path, name)) => (path, Some(name.trim().to_owned())),
        None => (tree, None),
    };
    let mut words = before.to_vec();
    words.extend(split(path));
    if !before.is_empty() && words.last().is_some_and(|last| last == "self") {
        words.pop();
    }
    if let Some(last) = words.last().cloned() {
        found.push((words, name.unwrap_or(last)));
    }
}

/// What commas separate on the uppermost level.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut all) = (0, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    all.push(&text[begin..]);
    all.retain(|part| !part.trim().is_empty());
    all
}

fn split(path: &str) -> impl Iterator<Item = String> {
    path.split("::").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned)
}

/// Words joined by `::` anywhere in code.
fn chains(code: &str) -> Vec<Path> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_word(bytes[at]) || in_word(bytes, at) {
            at += 1;
            continue;
        }
        let begin = at;
        let mut words = Vec::new();
        loop {
            let end = (at..bytes.len()).find(|end| !is_word(bytes[*end])).unwrap_or(bytes.len());
            words.push(code[at..end].to_owned());
            at = end;
            if !bytes[at..].starts_with(b"::") || !bytes.get(at + 2).copied().is_some_and(is_word) {
                break;
            }
            at += 2;
        }
        let behind_another = code[..begin].ends_with("::") || code[..begin].ends_with('.');
        if words.len() > 1 && !behind_another {
            found.push(Path { at: begin, words, public_as: None });
        }
    }
    found
}

const fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

fn in_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    (from..bytes.len()).find(|at| bytes[*at..].starts_with(what)).unwrap_or(bytes.len())
}

fn comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], from: usize) -> Option<usize> {
    let hashes = bytes[from + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = from + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    Some((find(bytes, open + 1, &close) + close.len()).min(bytes.len()))
}

/// A character, not a lifetime.
fn character_end(bytes: &[u8], from: usize) -> Option<usize> {
    if bytes.get(from + 1) == Some(&b'\\') {
        return Some((find(bytes, from + 3, b"'") + 1).min(bytes.len()));
    }
    let end = (from + 2..(from + 6).min(bytes.len())).find(|at| bytes[*at] == b'\'')?;
    // Several bytes are one character only outside of ASCII.
    (end == from + 2 || !bytes[from + 1].is_ascii()).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        paths(&without_tests(&code(text))).into_iter().map(|path| path.words.join("::")).collect()
    }

    #[test]
    fn nothing_in_comments_strings_or_tests_counts() {
        let text = "// use crate::a;\n/* use crate::b; /* */ use crate::b; */\n\
                    const S: &str = \"use crate::c; \\\" \";\nconst R: &str = r#\"use crate::d; \" \"#;\n\
                    const C: char = '\"';\nfn f<'a>(x: &'a str) {}\n\
                    #[cfg(test)]\nmod tests {\n    use crate::e;\n    fn g() { crate::h::i(); }\n}\nuse crate::k;\n";
        assert_eq!(named(text), ["crate::k"]);
    }

    #[test]
    fn trees_are_expanded() {
        let text = "use crate::a::{self, b, c::{d as e, *}};\npub(crate) use super::f::G;\n";
        assert_eq!(
            named(text),
            ["crate::a", "crate::a::b", "crate::a::c::d", "crate::a::c::*", "super::f::G"]
        );
        let handed_on: Vec<_> = paths(text).into_iter().filter_map(|path| path.public_as).collect();
        assert_eq!(handed_on, ["G"]);
    }

    #[test]
    fn how_far_something_is_visible_is_no_import() {
        let text = "pub(in super::super) fn f() {}\npub(in crate::a) use b::C;\n";
        assert_eq!(named(text), ["b::C"]);
        assert_eq!(paths(text)[0].public_as.as_deref(), Some("C"));
    }

    #[test]
    fn paths_in_the_middle_of_code_count() {
        assert_eq!(
            named("fn f() -> crate::a::B { super::c::d(x.e::<f::G>()) }\n"),
            ["crate::a::B", "super::c::d", "f::G"]
        );
    }
}
