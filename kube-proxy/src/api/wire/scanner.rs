//! Where JSON values begin and end, without reading what is in them.

/// Finds the end of one value, over as many pieces as it comes in.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    at: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

impl Scanner {
    /// Whether it has seen nothing yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// `bytes` begin where they began at the first call. Answers the place after the value's last byte. A value without
    /// quotes or brackets ends where something else begins, so the end of all does not show it.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(byte) = bytes.get(self.at) {
            let place = self.at;
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(self.at);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.begun = true;
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    self.begun = true;
                }
                b'}' | b']' if self.depth == 0 => return Some(place),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.at);
                    }
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => {
                    if self.depth == 0 && self.begun {
                        return Some(place);
                    }
                }
                _ => self.begun = true,
            }
        }
        None
    }
}

pub(super) fn blank(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The members of a JSON object that is complete, or of as much of it as makes sense.
pub(super) fn members(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = blank(object) + 1;
    std::iter::from_fn(move || {
        let (name, value) = member(object, at)?;
        at = value.end;
        Some((&object[name], &object[value]))
    })
}

/// The next member from `at` on: the place of its name without quotes, and that of its value.
fn member(object: &[u8], at: usize) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let skip = |at: usize, mark: u8| {
        let rest = object.get(at..)?;
        Some(at + rest.iter().take_while(|byte| byte.is_ascii_whitespace() || **byte == mark).count())
    };
    let name = skip(at, b',')?;
    if object.get(name) != Some(&b'"') {
        return None;
    }
    let name_end = name + Scanner::default().end(&object[name..])?;
    let value = skip(name_end, b':')?;
    let end = value + Scanner::default().end(&object[value..])?;
    (end > value).then_some((name + 1..name_end - 1, value..end))
}

/// The way to the value that the byte at `offset` belongs to, as `spec.ports[0].port`.
pub(super) fn path_at(value: &[u8], offset: usize) -> String {
    let mut path = String::new();
    descend(value, 0, offset, &mut path);
    path
}

fn descend(all: &[u8], from: usize, offset: usize, path: &mut String) {
    let start = from + blank(&all[from..]);
    match all.get(start) {
        Some(b'{') => {
            let mut at = start + 1;
            while let Some((name, value)) = member(all, at) {
                if (value.start..=value.end).contains(&offset) {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&String::from_utf8_lossy(&all[name]));
                    return descend(all, value.start, offset, path);
                }
                at = value.end;
            }
        }
        Some(b'[') => {
            let (mut at, mut index) = (start + 1, 0_usize);
            loop {
                at += all[at..].iter().take_while(|b| b.is_ascii_whitespace() || **b == b',').count();
                let Some(end) =
                    Scanner::default().end(&all[at..]).map(|end| at + end).filter(|end| *end > at)
                else {
                    return;
                };
                if (at..=end).contains(&offset) {
                    path.push_str(&format!("[{index}]"));
                    return descend(all, at, offset, path);
                }
                (at, index) = (end, index + 1);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_end_in_whatever_pieces_they_come() {
        for (text, end) in [
            (r#"{"a":"}","b":[1,{"c":"\"]"}]} "#, 29),
            (r#""a\\" ,"#, 5),
            ("[[],[]]]", 7),
            ("12,3", 2),
            ("true}", 4),
            (" null ", 5),
        ] {
            for split in 0..text.len() {
                let mut scanner = Scanner::default();
                let found = scanner.end(&text.as_bytes()[..split]).or_else(|| scanner.end(text.as_bytes()));
                assert_eq!(found, Some(end), "{text} in {split}");
            }
        }
    }

    #[test]
    fn members_are_found_and_a_place_is_named() {
        let text = r#"{ "kind" : "x", "spec":{"ports":[{"port":80},{"port":"eighty"}]} }"#;
        let all: Vec<_> =
            members(text.as_bytes()).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(all, ["kind", "spec"]);
        let offset = text.find("eighty").expect("it is there");
        assert_eq!(path_at(text.as_bytes(), offset), "spec.ports[1].port");
        assert_eq!(members(b"{\"a\"").count() + members(b"").count() + members(b"{\"a\":}").count(), 0);
    }
}
