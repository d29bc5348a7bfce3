//! Tests that judge how long something took: they fail for strangers on busy machines, and say nothing on idle ones.
//!
//! What must not grow is counted. What waits has a limit that only catches "never": it compares with a deadline.

use std::fs;
use std::path::Path;

use crate::place::{files, line_of, relative};
use crate::source;

/// What reads a clock, and what compares.
const CLOCKS: [&str; 2] = [".elapsed()", "cpu_time("];
const LESS: [&str; 3] = ["<", "..", ".contains("];

/// Each assertion in a test that something took less than so long.
pub(crate) fn judged(root: &Path, folder: &Path) -> Vec<String> {
    let mut wrongs = Vec::new();
    for file in files(folder, ".rs") {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let name = relative(root, &file);
        wrongs.extend(lines(&text).into_iter().map(|line| {
            format!("{name}:{line}: a test judges how long something took; count what must not grow instead")
        }));
    }
    wrongs
}

fn lines(text: &str) -> Vec<usize> {
    let code = source::code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("assert") {
        let Some(open) = code[at..].find('(').map(|length| at + length) else { continue };
        if !matches!(&code[at..open], "assert!" | "assert_eq!" | "assert_ne!") {
            continue;
        }
        let said = argument(&code, open);
        // A limit of its own name says that it only catches "never".
        let compares = LESS.iter().any(|less| said.contains(less)) && !said.contains("NEVER");
        if compares && CLOCKS.iter().any(|clock| said.contains(clock)) {
            found.push(line_of(&code, at));
        }
    }
    found
}

/// What stands between a parenthesis and its end.
fn argument(code: &str, open: usize) -> &str {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &code[open..at];
        }
    }
    &code[open..]
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn an_assertion_about_elapsed_time_is_found_and_a_deadline_is_not() {
        let text = "fn f() {\n    assert!(begun.elapsed() < LIMIT, \"{x}\");\n    assert!(now() < deadline);\n\
                    \n    assert!(\n        (a..b).contains(&begun.elapsed())\n    );\n    assert!(begun.elapsed() >= DELAY);\n\
                    \n    assert!(begun.elapsed() < NEVER);\n}\n";
        assert_eq!(lines(text), [2, 5]);
    }
}
