//! A JSON text that a person wrote, read so that everything that is wrong with it is said at once, each fault with its line and
//! column. The published document says what may stand in it; of keys that it does not have the nearest known one is named.
//! Comments and commas at the end of a list are taken, as editors leave them.

use std::collections::BTreeMap;

use hearth_api::error::FieldError;
use jsonc_parser::ast::{Object, ObjectPropName, Value as Node};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::input;
use crate::text::clean_line;

/// How alike an unknown key and a known one are when the one was probably meant, from 0 to 1.
const ALIKE: f64 = 0.6;
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
    /// Unknown keys that resemble no known one.
    strange: Vec<String>,
}

impl JsonFile {
    /// Reads a text. Where its outermost object has no `within` and the key `wrapper`, what is meant is what stands there.
    pub(crate) fn parse(name: &str, text: &str, within: &str, wrapper: &str) -> Result<Self, Failure> {
        let text = input::without_mark(text);
        let options = ParseOptions {
            allow_comments: true,
            allow_trailing_commas: true,
            allow_loose_object_property_names: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        let mut file = Self {
            name: name.to_owned(),
            text: text.to_owned(),
            value: Value::Null,
            places: BTreeMap::new(),
            faults: Vec::new(),
            strange: Vec::new(),
        };
        let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|error| {
            let place = place(text, error.range().start);
            Failure::usage(format!("{name} is no JSON: {place}: {}", error.kind()))
        })?;
        let Some(node) = parsed.value else {
            return Err(Failure::usage(format!("{name} is empty")));
        };
        let inner = node.as_object().filter(|object| object.get(within).is_none());
        let inner = inner.and_then(|object| object.get(wrapper));
        let value = file.walk(inner.map_or(&node, |property| &property.value), "");
        file.value = value;
        Ok(file)
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
            let key = match &property.name {
                ObjectPropName::String(text) => text.value.as_ref(),
                ObjectPropName::Word(word) => word.value,
            };
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

    /// Finds everything that does not go with the published schema of this name.
    pub(crate) fn check(&mut self, schema: &str) {
        let value = std::mem::take(&mut self.value);
        self.faults.extend(hearth_server::body_faults(schema, &value));
        let document = hearth_server::openapi_document();
        self.find_unknown(&document["components"]["schemas"][schema], &value, "");
        self.value = value;
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
                        None => self.unknown(&path, key, known.keys()),
                    }
                }
            }
            _ => {}
        }
    }

    fn unknown<'a>(&mut self, path: &str, key: &str, known: impl Iterator<Item = &'a String>) {
        let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
        let likeness = |other: &String| strsim::normalized_damerau_levenshtein(&plain(key), &plain(other));
        let nearest = known
            .map(|other| (likeness(other), other))
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        let meant = nearest
            .filter(|(likeness, _)| *likeness >= ALIKE)
            .map(|(_, other)| other);
        let before = self.faults.iter().position(|fault| fault.path == path);
        match (meant, before) {
            (Some(meant), Some(at)) => self.faults[at].message.push_str(&format!("; is `{meant}` meant?")),
            (Some(meant), None) => self.fault(path, format!("is not known here; is `{meant}` meant?")),
            // The schema has said so already.
            (None, Some(_)) => {}
            // It may be meant for another service that knows more.
            (None, None) => self.strange.push(self.line_of(path)),
        }
    }

    /// Unknown keys that resemble no known one, each with its place.
    pub(crate) fn strange(&self) -> &[String] {
        &self.strange
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
