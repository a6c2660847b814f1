//! JSON with comments, YAML and TOML, each bounded in depth, read into one kind of value. What is wrong is told with line and column.

use jsonc_parser::{ParseOptions, parse_to_serde_value};
use serde_json::Value;
use serde_saphyr::{Budget, MergeKeyPolicy, Options};

use crate::Fault;

/// JSON as editors leave it: comments, and commas at the end of a list.
pub const JSONC: ParseOptions = ParseOptions {
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

pub(crate) fn jsonc(file: &str, text: &str) -> Result<Value, Fault> {
    parse_to_serde_value::<Value>(text, &JSONC).map_err(|error| {
        let place = format!("line {}, column {}", error.line_display(), error.column_display());
        Fault::new(file, place, error.kind().to_string())
    })
}

/// YAML: anchors may be used, but not to make much of little.
pub(crate) fn yaml(file: &str, text: &str) -> Result<Value, Fault> {
    /// Values, with what aliases repeat.
    const MOST: usize = 20_000;
    let mut budget = Budget::default();
    budget.max_nodes = MOST;
    budget.max_events = 2 * MOST;
    budget.max_aliases = 1000;
    budget.max_documents = 1;
    budget.max_depth = 32;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.merge_keys = MergeKeyPolicy::Merge;
    options.alias_limits.max_total_replayed_events = MOST;
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
        let error = error.without_snippet();
        let place = error
            .location()
            .map_or_else(String::new, |at| format!("line {}, column {}", at.line(), at.column()));
        let said = error.to_string();
        // It ends with the place, too; and one row says it all.
        let what = said.lines().next().unwrap_or_default();
        let what = what.split(" at line ").next().unwrap_or(what);
        let what = what.strip_prefix("error: ").unwrap_or(what);
        Fault::new(file, place, what.trim_end_matches(':'))
    })
}

/// TOML.
pub(crate) fn toml(file: &str, text: &str) -> Result<Value, Fault> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let place = error.span().map_or_else(String::new, |span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = 1 + before.matches('\n').count();
            let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
            format!("line {line}, column {column}")
        });
        Fault::new(file, place, error.message())
    })?;
    Ok(value(toml::Value::Table(table)))
}

fn value(from: toml::Value) -> Value {
    match from {
        toml::Value::String(text) => Value::from(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(is) => Value::from(is),
        toml::Value::Datetime(time) => Value::from(time.to_string()),
        toml::Value::Array(all) => all.into_iter().map(value).collect(),
        toml::Value::Table(all) => Value::Object(all.into_iter().map(|(key, of)| (key, value(of))).collect()),
    }
}
