//! A JSON text that a person wrote, read so that everything that is wrong with it is said at once, each fault with its line and
//! column. The published document says what may stand in it; of keys that it does not have, which are faults too, the nearest known one is named.
//! Comments and commas at the end of a list are taken, as editors leave them.

use std::collections::BTreeMap;

use hearth_api::error::FieldError;
use hearth_import::JSONC;
use jsonc_parser::ast::{Object, ObjectPropName, Value as Node};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, parse_to_ast};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::input;
use crate::text::clean_line;

/// How alike an unknown key and a known one are when the one was probably meant, from 0 to 1.
const ALIKE: f64 = 0.6;
/// Letters after which a beginning of a key says which one is meant.
const SHORTEST_BEGINNING: usize = 3;
/// How the published document refers to a schema.
const SCHEMA_REFERENCE: &str = "#/components/schemas/";

/// A text and where everything stands in it.
#[derive(Debug)]
pub(crate) struct JsonFile {
    name: String,
    text: String,
    /// What it says.
    pub(crate) value: Value,
    /// Byte at which what has this path begins, its key included.
    places: BTreeMap<String, usize>,
    faults: Vec<FieldError>,
}

impl JsonFile {
    /// Reads a text. `wrapped`: where its outermost object lacks the first key and has the second, what is meant is what stands
    /// there; the others may stand beside it and say nothing.
    pub(crate) fn parse(name: &str, text: &str, wrapped: Option<(&str, &str, &[&str])>) -> Result<Self, Failure> {
        let text = input::without_mark(text);
        let mut file = Self {
            name: name.to_owned(),
            text: text.to_owned(),
            value: Value::Null,
            places: BTreeMap::new(),
            faults: Vec::new(),
        };
        let parsed = parse_to_ast(text, &CollectOptions::default(), &JSONC).map_err(|error| {
            let place = place(text, error.range().start);
            Failure::usage(format!("{name} is no JSON: {place}: {}", error.kind()))
        })?;
        let Some(node) = parsed.value else {
            return Err(Failure::usage(format!("{name} is empty")));
        };
        let inner = match wrapped {
            Some((within, wrapper, beside)) => file.unwrap(&node, within, wrapper, beside),
            None => None,
        };
        let value = file.walk(inner.unwrap_or(&node), "");
        file.value = value;
        Ok(file)
    }

    /// What stands in the wrapper, if there is one. What else stands beside it would be lost: it is a fault.
    fn unwrap<'a, 'b>(
        &mut self,
        node: &'a Node<'b>,
        within: &str,
        wrapper: &str,
        beside: &[&str],
    ) -> Option<&'a Node<'b>> {
        let outer = node.as_object().filter(|object| object.get(within).is_none())?;
        let inner = outer.get(wrapper)?;
        for property in &outer.properties {
            let key = key_of(&property.name);
            if key != wrapper && !beside.contains(&key) {
                let path = format!("{key} beside `{wrapper}`");
                self.places.insert(path.clone(), property.range.start);
                self.fault(&path, format!("is not known here; does it belong into `{wrapper}`?"));
            }
        }
        Some(&inner.value)
    }

    fn walk(&mut self, node: &Node<'_>, path: &str) -> Value {
        self.places.entry(path.to_owned()).or_insert(node.range().start);
        match node {
            Node::StringLit(text) => Value::String(text.value.to_string()),
            Node::BooleanLit(truth) => Value::Bool(truth.value),
            Node::NullKeyword(_) => Value::Null,
            Node::NumberLit(number) => serde_json::from_str(number.value).unwrap_or_else(|_| {
                self.fault(path, "is no number that JSON can hold");
                Value::Null
            }),
            Node::Array(array) => {
                let elements = array.elements.iter().enumerate();
                elements
                    .map(|(at, node)| self.walk(node, &format!("{path}[{at}]")))
                    .collect()
            }
            Node::Object(object) => self.walk_object(object, path),
        }
    }

    fn walk_object(&mut self, object: &Object<'_>, path: &str) -> Value {
        let mut members = Map::new();
        for property in &object.properties {
            let key = key_of(&property.name);
            let path = member(path, key);
            self.places.insert(path.clone(), property.range.start);
            let value = self.walk(&property.value, &path);
            if members.insert(key.to_owned(), value).is_some() {
                self.fault(&path, "is there twice");
            }
        }
        Value::Object(members)
    }

    fn fault(&mut self, path: &str, message: impl Into<String>) {
        self.faults.push(FieldError {
            path: path.to_owned(),
            message: message.into(),
        });
    }

    /// Finds everything that does not go with the published schema of this name. Keys that it does not have are faults at every
    /// depth: what is left out without a word would be missed only when it should have run.
    pub(crate) fn check(&mut self, schema: &str) {
        let value = std::mem::take(&mut self.value);
        self.check_at(schema, &value, "");
        self.value = value;
    }

    /// The same for a list of such things.
    pub(crate) fn check_each(&mut self, schema: &str) {
        let value = std::mem::take(&mut self.value);
        match value.as_array() {
            Some(elements) => {
                for (at, element) in elements.iter().enumerate() {
                    self.check_at(schema, element, &format!("[{at}]"));
                }
            }
            None => self.fault(".", "must be a list"),
        }
        self.value = value;
    }

    fn check_at(&mut self, schema: &str, value: &Value, place: &str) {
        let faults = hearth_server::body_faults(schema, value).into_iter();
        self.faults.extend(faults.map(|fault| FieldError {
            path: match (place, fault.path.as_str()) {
                ("", path) => path.to_owned(),
                (place, ".") => place.to_owned(),
                (place, path) => member(place, path),
            },
            message: fault.message,
        }));
        let document = hearth_server::openapi_document();
        self.find_unknown(&document["components"]["schemas"][schema], value, place);
    }

    fn find_unknown(&mut self, schema: &Value, value: &Value, path: &str) {
        let schema = resolve(schema);
        match value {
            Value::Array(values) => {
                for (at, value) in values.iter().enumerate() {
                    self.find_unknown(&schema["items"], value, &format!("{path}[{at}]"));
                }
            }
            Value::Object(members) => {
                let Some(known) = schema["properties"].as_object() else {
                    return;
                };
                for (key, value) in members {
                    let path = member(path, key);
                    match known.get(key) {
                        Some(schema) => self.find_unknown(schema, value, &path),
                        None => self.unknown(&path, key, &known.keys().map(String::as_str).collect::<Vec<_>>()),
                    }
                }
            }
            _ => {}
        }
    }

    fn unknown(&mut self, path: &str, key: &str, known: &[&str]) {
        let advice = match meant(key, known) {
            Some(meant) => format!("is `{meant}` meant?"),
            None => format!("there is {}", known.join(", ")),
        };
        match self.faults.iter_mut().find(|fault| fault.path == path) {
            // The schema has said so already.
            Some(fault) => fault.message.push_str(&format!("; {advice}")),
            None => self.fault(path, format!("is not known here; {advice}")),
        }
    }

    /// Nothing, or everything that is wrong, in the order in which it stands there.
    pub(crate) fn finish(&self, holds: &str) -> Result<(), Failure> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(self.refusal(&format!("{} holds no {holds}", self.name), &self.faults))
    }

    /// What a refusal says about fields of this text, each with its place.
    pub(crate) fn refusal(&self, what: &str, faults: &[FieldError]) -> Failure {
        let mut faults: Vec<&FieldError> = faults.iter().collect();
        faults.sort_by_key(|fault| self.at(&fault.path));
        let line = |fault: &FieldError| clean_line(&format!("{}: {}", self.line_of(&fault.path), fault.message));
        match faults.as_slice() {
            [one] => Failure::usage(format!("{what}: {}", line(one))),
            many => {
                let failure = Failure::usage(format!("{what}: {} faults", many.len()));
                many.iter().fold(failure, |failure, fault| failure.detail(line(fault)))
            }
        }
    }

    /// `line 4, column 9: repositories[0].branch`.
    fn line_of(&self, path: &str) -> String {
        let place = place(&self.text, self.at(path));
        if path == "." {
            place
        } else {
            clean_line(&format!("{place}: {path}"))
        }
    }

    /// Where this is, or where what it is missing in begins.
    fn at(&self, path: &str) -> usize {
        let mut path = if path == "." { "" } else { path };
        loop {
            if let Some(at) = self.places.get(path) {
                return *at;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None if path.is_empty() => return 0,
                None => path = "",
            }
        }
    }
}

/// The known key that was probably meant: the one that is most alike, or that this one begins.
fn meant<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let key = plain(key);
    let likeness = |other: &&&str| strsim::normalized_damerau_levenshtein(&key, &plain(other));
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    if likeness(&nearest) >= ALIKE {
        return Some(nearest);
    }
    let longer = |other: &&&str| key.len() >= SHORTEST_BEGINNING && plain(other).starts_with(&key);
    known.iter().find(longer).copied()
}

fn key_of<'a>(name: &'a ObjectPropName<'_>) -> &'a str {
    match name {
        ObjectPropName::String(text) => text.value.as_ref(),
        ObjectPropName::Word(word) => word.value,
    }
}

fn member(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The schema that says which keys there are: what a reference refers to, or the alternative that is not `null`.
fn resolve(schema: &Value) -> &Value {
    let schemas = &hearth_server::openapi_document()["components"]["schemas"];
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|text| text.strip_prefix(SCHEMA_REFERENCE))
    {
        return resolve(&schemas[name]);
    }
    let alternatives = ["oneOf", "anyOf", "allOf"]
        .iter()
        .find_map(|key| schema[*key].as_array());
    match alternatives.into_iter().flatten().find(|one| one["type"] != "null") {
        Some(one) => resolve(one),
        None => schema,
    }
}

/// `line 4, column 9`.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}
