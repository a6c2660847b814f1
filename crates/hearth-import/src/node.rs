//! A value in a file, with the place it stands at. What has the wrong type is a fault that names that place and no content.

use serde_json::{Map, Value};

use crate::Fault;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    pub(crate) file: &'a str,
    /// Like `build.args`.
    pub(crate) place: String,
    pub(crate) value: &'a Value,
}

impl<'a> Node<'a> {
    pub(crate) fn root(file: &'a str, value: &'a Value) -> Self {
        Self {
            file,
            place: String::new(),
            value,
        }
    }

    pub(crate) fn fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.file, self.place.clone(), what)
    }

    fn wrong(&self, expected: &str) -> Fault {
        let is = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.fault(format!("is {is}, and must be {expected}"))
    }

    fn below(&self, key: &str, value: &'a Value) -> Self {
        let place = match (self.place.as_str(), key) {
            ("", key) => key.to_owned(),
            (place, key) if key.starts_with('[') => format!("{place}{key}"),
            (place, key) => format!("{place}.{key}"),
        };
        Self {
            file: self.file,
            place,
            value,
        }
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, Fault> {
        self.value.as_object().ok_or_else(|| self.wrong("an object"))
    }

    /// What an object says, in the order of its keys: that of the file is kept by some builds of the parser and not by others.
    pub(crate) fn entries(&self) -> Result<Vec<(&'a str, Self)>, Fault> {
        let mut entries: Vec<_> = self.object()?.iter().collect();
        entries.sort_by_key(|(key, _)| key.as_str());
        let entries = entries.into_iter();
        Ok(entries
            .map(|(key, value)| (key.as_str(), self.below(key, value)))
            .collect())
    }

    /// What an object says of a key; `None` when it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Self>, Fault> {
        let found = self.object()?.get(key).filter(|value| !value.is_null());
        Ok(found.map(|value| self.below(key, value)))
    }

    pub(crate) fn items(&self) -> Result<Vec<Self>, Fault> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        Ok(items
            .iter()
            .enumerate()
            .map(|(at, value)| self.below(&format!("[{at}]"), value))
            .collect())
    }

    pub(crate) fn text(&self) -> Result<&'a str, Fault> {
        self.value.as_str().ok_or_else(|| self.wrong("a text"))
    }

    /// A text, or a number or truth value as one: YAML makes these of what people mean as text.
    pub(crate) fn scalar(&self) -> Result<String, Fault> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(is) => Ok(is.to_string()),
            _ => Err(self.wrong("a text")),
        }
    }

    /// A version: a text, or a number, which `20` is taken for.
    pub(crate) fn version(&self) -> Result<String, Fault> {
        match self.value {
            Value::String(_) | Value::Number(_) => self.scalar(),
            _ => Err(self.wrong("a version")),
        }
    }

    pub(crate) fn text_of(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        self.get(key)?.map(|node| node.text()).transpose()
    }

    pub(crate) fn scalar_of(&self, key: &str) -> Result<Option<String>, Fault> {
        self.get(key)?.map(|node| node.scalar()).transpose()
    }

    /// Texts by name.
    pub(crate) fn scalars(&self) -> Result<Vec<(String, String)>, Fault> {
        let entries = self.entries()?.into_iter();
        entries
            .map(|(key, node)| Ok((key.to_owned(), node.scalar()?)))
            .collect()
    }
}
