//! Which objects a request's `labelSelector` and `fieldSelector` let through.

use super::resource::Resource;
use super::stored::Stored;

/// Both selectors of one request; the default lets everything through.
#[derive(Debug, Default, Clone)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Clone)]
enum Requirement {
    Exists(String),
    Missing(String),
    OneOf(String, Vec<String>),
    NoneOf(String, Vec<String>),
}

impl Selector {
    pub(crate) fn parse(
        resource: &Resource,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, String> {
        let mut selector = Self {
            labels: split_outside_parentheses(labels.unwrap_or_default())
                .map(requirement)
                .collect::<Result<_, _>>()?,
            namespace: namespace.map(str::to_owned),
            ..Self::default()
        };
        for term in fields.unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            let (path, value, equal) = comparison(term)
                .ok_or_else(|| format!("invalid selector: '{term}'; can't understand '{term}'"))?;
            match path {
                "metadata.name" if equal => selector.name = Some(value.to_owned()),
                "metadata.namespace" if equal => selector.namespace = Some(value.to_owned()),
                _ if path.starts_with("metadata.name") || resource.fields.contains(&path) => {
                    selector.fields.push((path.to_owned(), value.to_owned(), equal));
                }
                _ => return Err(format!("field label not supported: {path}")),
            }
        }
        Ok(selector)
    }

    /// Whether no term but the namespace narrows the choice.
    pub(crate) fn is_plain(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    pub(crate) fn matches(&self, object: &Stored) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == object.key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == object.key.name)
            && self.fields.iter().all(|(path, value, equal)| (object.field(path) == value) == *equal)
            && self.labels.iter().all(|requirement| requirement.matches(object))
    }
}

impl Requirement {
    fn matches(&self, object: &Stored) -> bool {
        match self {
            Self::Exists(key) => object.labels.contains_key(key),
            Self::Missing(key) => !object.labels.contains_key(key),
            Self::OneOf(key, values) => object.labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NoneOf(key, values) => object.labels.get(key).is_none_or(|value| !values.contains(value)),
        }
    }
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let term = term.trim();
    let invalid = || format!("unable to parse requirement: {term:?}");
    if let Some((key, values)) = term.split_once(" notin ") {
        return Ok(Requirement::NoneOf(label_key(key, invalid)?, value_list(values, invalid)?));
    }
    if let Some((key, values)) = term.split_once(" in ") {
        return Ok(Requirement::OneOf(label_key(key, invalid)?, value_list(values, invalid)?));
    }
    if let Some((key, value, equal)) = comparison(term) {
        let (key, values) = (label_key(key, invalid)?, vec![value.to_owned()]);
        return Ok(if equal { Requirement::OneOf(key, values) } else { Requirement::NoneOf(key, values) });
    }
    match term.strip_prefix('!') {
        Some(key) => Ok(Requirement::Missing(label_key(key, invalid)?)),
        None => Ok(Requirement::Exists(label_key(term, invalid)?)),
    }
}

fn label_key(key: &str, invalid: impl Fn() -> String) -> Result<String, String> {
    let key = key.trim();
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(valid) { Err(invalid()) } else { Ok(key.to_owned()) }
}

fn value_list(text: &str, invalid: impl Fn() -> String) -> Result<Vec<String>, String> {
    let inner = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')')).ok_or_else(invalid)?;
    Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

/// `key=value`, `key==value` and `key!=value`; the flag says whether equality is asked for.
fn comparison(term: &str) -> Option<(&str, &str, bool)> {
    if let Some((key, value)) = term.split_once("!=") {
        return Some((key.trim(), value.trim(), false));
    }
    let (key, value) = term.split_once("==").or_else(|| term.split_once('='))?;
    Some((key.trim(), value.trim(), true))
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c: char| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
    .filter(|term| !term.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::resource::RESOURCES;
    use super::super::stored::Stored;
    use super::Selector;
    use serde_json::json;

    fn service(labels: &serde_json::Value, cluster_ip: &str) -> Stored {
        let object = json!({
            "metadata": { "namespace": "shop", "name": "cart", "labels": labels },
            "spec": { "clusterIP": cluster_ip },
        });
        Stored::new(&RESOURCES[0], object, 1)
    }

    fn labels_let_through(selector: &str, labels: serde_json::Value) -> bool {
        let selector = Selector::parse(&RESOURCES[0], None, Some(selector), None).expect("a valid selector");
        selector.matches(&service(&labels, "10.0.0.1"))
    }

    #[test]
    fn label_terms_mean_what_kubernetes_says() {
        assert!(labels_let_through("!service.kubernetes.io/headless", json!({})));
        assert!(!labels_let_through(
            "!service.kubernetes.io/headless",
            json!({"service.kubernetes.io/headless": ""})
        ));
        assert!(labels_let_through("a", json!({"a": "1"})));
        assert!(labels_let_through("a=1,b!=2", json!({"a": "1"})));
        assert!(!labels_let_through("a=1,b!=2", json!({"a": "1", "b": "2"})));
        assert!(labels_let_through("a in (1, 2),b notin (3)", json!({"a": "2", "b": "4"})));
        assert!(!labels_let_through("a in (1,2)", json!({"a": "3"})));
        assert!(labels_let_through("a == 1", json!({"a": "1"})));
    }

    #[test]
    fn field_terms_select_by_name_and_declared_field() {
        let select = |fields: &str| Selector::parse(&RESOURCES[0], None, None, Some(fields));
        let headless = service(&json!({}), "None");
        assert!(!select("spec.clusterIP!=None").expect("known field").matches(&headless));
        assert!(select("metadata.name=cart,metadata.namespace=shop").expect("names").matches(&headless));
        assert!(!select("metadata.name=other").expect("name").matches(&headless));
        assert_eq!(select("spec.color=red").unwrap_err(), "field label not supported: spec.color");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["a in 1", "!", "a b", "=x"] {
            assert!(Selector::parse(&RESOURCES[0], None, Some(bad), None).is_err(), "{bad}");
        }
    }
}
