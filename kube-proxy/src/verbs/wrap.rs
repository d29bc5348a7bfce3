//! Lines for people that must not be cut: broken at blanks to the width of a terminal, what follows indented.

/// A text behind a head, in lines of at most `width` characters (`None`: one line); each further line begins under the text's
/// first character. Words that are longer than a line stay whole.
pub(crate) fn wrapped(head: &str, text: &str, width: Option<usize>) -> String {
    let indent = head.chars().count();
    let mut out = head.to_owned();
    let mut at = indent;
    let mut begins = true;
    for word in clean(text).split(' ') {
        let length = word.chars().count();
        if !begins && width.is_some_and(|width| at + 1 + length > width.max(indent + 20)) {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            at = indent;
            begins = true;
        }
        if !begins {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += length;
        begins = false;
    }
    out.push('\n');
    out
}

/// What names a cluster's users choose must not steer a terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks_and_nothing_is_lost() {
        let text = "one two three four five six seven eight nine ten";
        assert_eq!(wrapped("- ", text, None), format!("- {text}\n"));
        let broken = wrapped("- ", text, Some(24));
        assert_eq!(broken, "- one two three four\n  five six seven eight\n  nine ten\n");
        let long = "x".repeat(100);
        assert_eq!(wrapped("head ", &long, Some(40)), format!("head {long}\n"));
        assert_eq!(wrapped("", "a\x1b[31mb", Some(40)), "a?[31mb\n");
    }
}
