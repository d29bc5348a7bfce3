//! One answer made of several nodes'.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::arguments::FAILED;

/// What one node said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) node: String,
    pub(crate) code: u8,
    pub(crate) text: String,
    pub(crate) errors: String,
}

impl Answer {
    pub(crate) fn failed(node: &str, error: &str) -> Self {
        Self { node: node.to_owned(), code: FAILED, text: String::new(), errors: format!("{error}\n") }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
    Yaml,
}

/// As the verb is told to print.
pub(crate) fn format(verb: &[String]) -> Format {
    let mut words = verb.iter().take_while(|word| *word != "--");
    let mut format = Format::Text;
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "-o" | "--output" => words.next().map(String::as_str),
            word => word
                .strip_prefix("--output=")
                .or_else(|| word.strip_prefix("-o").filter(|value| !value.is_empty()))
                .map(|value| value.trim_start_matches('=')),
        };
        match value {
            Some("json") => format = Format::Json,
            Some("yaml") => format = Format::Yaml,
            _ => {}
        }
    }
    format
}

/// JSON: a list of `{node, exitCode, answer}`. YAML: a document a node. Text: a heading a node.
pub(crate) fn print(answers: &[Answer], format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Json => {
            let items: Vec<Value> = answers
                .iter()
                .map(|answer| json!({ "node": answer.node, "exitCode": answer.code, "answer": value(&answer.text) }))
                .collect();
            serde_json::to_writer_pretty(&mut *out, &items)?;
            writeln!(out)
        }
        Format::Yaml => answers.iter().try_for_each(|answer| {
            writeln!(out, "---\n# node {}, exit code {}", answer.node, answer.code)?;
            write_whole(out, &answer.text)
        }),
        Format::Text => answers.iter().enumerate().try_for_each(|(at, answer)| {
            if at > 0 {
                writeln!(out)?;
            }
            writeln!(out, "== {}", answer.node)?;
            write_whole(out, &answer.text)
        }),
    }
}

/// One value; several lines with one each are a list; what is no JSON stays text.
fn value(text: &str) -> Value {
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    match values {
        Ok(mut values) => match values.len() {
            0 => Value::Null,
            1 => values.remove(0),
            _ => Value::Array(values),
        },
        Err(_) => Value::String(text.to_owned()),
    }
}

fn write_whole(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    if text.is_empty() || text.ends_with('\n') { Ok(()) } else { writeln!(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Vec<Answer> {
        let answer = |node: &str, code, text: &str| Answer {
            node: node.to_owned(),
            code,
            text: text.to_owned(),
            errors: String::new(),
        };
        vec![answer("a", 0, "{\"x\": 1}"), answer("b", 3, "{\"y\": 2}\n{\"y\": 3}\n"), answer("c", 70, "")]
    }

    fn printed(format: Format) -> String {
        let mut out = Vec::new();
        print(&answers(), format, &mut out).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn answers_are_told_apart_by_node() {
        let expected = json!([
            { "node": "a", "exitCode": 0, "answer": { "x": 1 } },
            { "node": "b", "exitCode": 3, "answer": [{ "y": 2 }, { "y": 3 }] },
            { "node": "c", "exitCode": 70, "answer": null },
        ]);
        assert_eq!(serde_json::from_str::<Value>(&printed(Format::Json)).expect("JSON"), expected);
        assert_eq!(printed(Format::Text), "== a\n{\"x\": 1}\n\n== b\n{\"y\": 2}\n{\"y\": 3}\n\n== c\n");
        assert!(printed(Format::Yaml).starts_with("---\n# node a, exit code 0\n{\"x\": 1}\n---\n# node b"));
    }

    #[test]
    fn the_verbs_format_is_understood_in_all_its_forms() {
        let of = |line: &str| format(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for line in ["x -o json", "x -ojson", "-o=json x", "x --output json", "x --output=json"] {
            assert_eq!(of(line), Format::Json, "{line}");
        }
        assert_eq!(of("x -o yaml"), Format::Yaml);
        for line in ["x", "x -o wide", "x -- -o json"] {
            assert_eq!(of(line), Format::Text, "{line}");
        }
    }
}
