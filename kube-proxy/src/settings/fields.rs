//! Takes a decoded document apart field by field: names what has the wrong type, and what nobody asked for.

use serde_json::{Map, Value};

use super::{
    error::FieldError,
    go_text::{GoDuration, parse_quantity},
};

/// One object of a document. Every field that is taken disappears from it; what is left is unknown.
///
/// An absent field and a null one are the same thing: the default.
pub(super) struct Fields<'a> {
    path: String,
    left: Map<String, Value>,
    findings: &'a mut Findings,
}

/// What was found while taking a document apart.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Values of the wrong type: fatal.
    pub(super) errors: Vec<FieldError>,
    /// Fields that do not exist: worth a line in the log.
    pub(super) unknown: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &str, left: Map<String, Value>, findings: &'a mut Findings) -> Self {
        Self { path: path.to_owned(), left, findings }
    }

    pub(super) fn string(&mut self, name: &str) -> Option<String> {
        self.take(name, "must be a string (put it in quotes)", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.take(name, "must be true or false", Value::as_bool)
    }

    pub(super) fn int32(&mut self, name: &str) -> Option<i32> {
        self.take(name, "must be a whole number that fits into 32 bits", |value| {
            // YAML has one kind of number: 5.0 is as whole as 5.
            let whole = || value.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64);
            value.as_i64().or_else(whole).and_then(|number| i32::try_from(number).ok())
        })
    }

    pub(super) fn float32(&mut self, name: &str) -> Option<f32> {
        self.take(name, "must be a number", |value| value.as_f64().map(|number| number as f32))
    }

    pub(super) fn level(&mut self, name: &str) -> Option<u32> {
        self.take(name, "must be a whole number from 0 to 2147483647", |value| {
            value
                .as_u64()
                .and_then(|number| i32::try_from(number).ok())
                .and_then(|number| u32::try_from(number).ok())
        })
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<GoDuration> {
        self.take(name, "must be a duration such as \"30s\", \"1h30m\" or \"0s\"", |value| {
            value.as_str().and_then(|text| GoDuration::parse(text).ok())
        })
    }

    /// A duration, or nanoseconds as a number (the older form of `logging.flushFrequency`).
    pub(super) fn duration_or_nanoseconds(&mut self, name: &str) -> Option<GoDuration> {
        self.take(name, "must be a duration such as \"5s\", or nanoseconds", |value| match value {
            Value::String(text) => GoDuration::parse(text).ok(),
            other => other.as_i64().map(GoDuration),
        })
    }

    pub(super) fn quantity(&mut self, name: &str) -> Option<String> {
        self.take(name, "must be a number of bytes such as 0, \"512Ki\" or \"10M\"", |value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            parse_quantity(&text).is_ok().then_some(text)
        })
    }

    pub(super) fn strings(&mut self, name: &str) -> Option<Vec<String>> {
        self.take(name, "must be a list of strings", |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
    }

    pub(super) fn booleans(&mut self, name: &str) -> Option<Vec<(String, bool)>> {
        self.take(name, "must be a map from names to true or false", |value| {
            value.as_object()?.iter().map(|(key, item)| Some((key.clone(), item.as_bool()?))).collect()
        })
    }

    /// Hands every object of a list to `read`.
    pub(super) fn list<T>(&mut self, name: &str, mut read: impl FnMut(&mut Fields<'_>) -> T) -> Vec<T> {
        let items = self.take(name, "must be a list", |value| value.as_array().cloned()).unwrap_or_default();
        let path = self.child(name);
        let mut all = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            all.push(self.open(format!("{path}[{at}]"), item, &mut read));
        }
        all
    }

    /// Hands the object of that name, or an empty one, to `read`.
    pub(super) fn object<T>(&mut self, name: &str, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let path = self.child(name);
        let value = self.left.remove(name).unwrap_or(Value::Null);
        self.open(path, value, read)
    }

    fn open<T>(&mut self, path: String, value: Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let left = match value {
            Value::Object(left) => left,
            Value::Null => Map::new(),
            other => {
                self.findings.errors.push(FieldError::new(&path, &other, "must be a map of fields"));
                Map::new()
            }
        };
        let mut fields = Fields { path, left, findings: &mut *self.findings };
        let result = read(&mut fields);
        fields.finish();
        result
    }

    /// Whatever nobody took is unknown.
    pub(super) fn finish(self) {
        for name in self.left.keys() {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            self.findings.unknown.push(path);
        }
    }

    fn child(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn take<T>(
        &mut self,
        name: &str,
        allowed: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.left.remove(name).filter(|value| !value.is_null())?;
        let result = read(&value);
        if result.is_none() {
            let path = self.child(name);
            self.findings.errors.push(FieldError::new(&path, &value, allowed));
        }
        result
    }
}
