//! Kubernetes objects from files: JSON, or YAML with one or many documents.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Reads every object of a file; a `List` stands for its items.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

/// The same from text.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?
    } else {
        serde_saphyr::from_multiple(text)?
    };
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
                if let Some(Value::Array(items)) = map.remove("items") {
                    objects.extend(items);
                }
            }
            object => objects.push(object),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn yaml_documents_json_streams_and_lists_are_read() {
        let yaml = "kind: Service\nmetadata: {name: a}\n---\nkind: List\nitems:\n- kind: Node\n- kind: Service\n---\n";
        let kinds = |text: &str| -> Vec<String> {
            let objects = parse(text).expect("valid text");
            objects.iter().map(|object| object["kind"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(kinds(yaml), ["Service", "Node", "Service"]);
        assert_eq!(kinds("{\"kind\":\"Node\"}\n{\"kind\":\"Service\"}"), ["Node", "Service"]);
        assert!(parse("a: [").is_err());
    }
}
