//! Reading a config file: each fault with its line and column, and all of them at once.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Key, keys};
use crate::failure::Failure;

/// How alike a key must be to one that exists to be taken for it.
const ALIKE: f64 = 0.6;

/// What a file says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) texts: Vec<String>,
}

/// What is wrong, and where its bytes are.
struct Fault {
    at: usize,
    what: String,
}

/// The settings in this text, which `path` holds.
pub(crate) fn read(path: &Path, text: &str) -> Result<Vec<Setting>, Failure> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut faults: Vec<Fault> = errors
        .iter()
        .map(|error| Fault {
            at: error.span().map_or(0, |span| span.start),
            what: error.message().lines().next().unwrap_or_default().to_owned(),
        })
        .collect();
    let keys = keys();
    let mut settings = Vec::new();
    for (name, value) in table.get_ref() {
        match setting(&keys, name, value) {
            Ok(setting) => settings.push(setting),
            // A line that is no TOML may be half of a setting: what is wrong with it has been said.
            Err(_) if !errors.is_empty() => {}
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        return Ok(settings);
    }
    faults.sort_by_key(|fault| fault.at);
    let mut lines = faults.iter().map(|fault| {
        let (line, column) = place(text, fault.at);
        format!("line {line}, column {column}: {}", fault.what)
    });
    let first = lines.next().unwrap_or_default();
    let mut failure = Failure::usage(format!("the config file {} cannot be used: {first}", path.display()));
    for line in lines {
        failure = failure.detail(line);
    }
    Err(failure.hint("`hearth config example` prints every key with its default"))
}

/// Line and column of a byte, from 1; columns are characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

fn setting(keys: &[Key], name: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>) -> Result<Setting, Fault> {
    let text = name.get_ref().as_ref();
    let Some(key) = keys.iter().find(|key| key.name() == text) else {
        let what = match nearest(keys, text) {
            Some(near) => format!("there is no key `{text}`; did you mean `{near}`?"),
            None => format!("there is no key `{text}`"),
        };
        return Err(fault(&name.span(), what));
    };
    let say = |what: String| format!("{}: {what}", key.name());
    let values: Vec<(Range<usize>, &DeValue<'_>)> = match value.get_ref() {
        DeValue::Array(values) if key.is_list() => values.iter().map(|value| (value.span(), value.get_ref())).collect(),
        DeValue::Array(_) => return Err(fault(&value.span(), say("it takes one value, not a list".to_owned()))),
        alone => vec![(value.span(), alone)],
    };
    let mut texts = Vec::new();
    for (span, value) in values {
        let text = plain(value, key.is_switch()).map_err(|what| fault(&span, say(what.to_owned())))?;
        if let Some(what) = key.fault(&text) {
            return Err(fault(&span, say(what)));
        }
        texts.push(text);
    }
    Ok(Setting {
        key: key.name().to_owned(),
        texts,
    })
}

fn fault(span: &Range<usize>, what: String) -> Fault {
    Fault { at: span.start, what }
}

/// A value as it would be written on the command line.
fn plain(value: &DeValue<'_>, is_switch: bool) -> Result<String, &'static str> {
    match value {
        DeValue::Boolean(value) if is_switch => Ok(value.to_string()),
        _ if is_switch => Err("write true or false"),
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        _ => Err("write a text in quotation marks, or a whole number"),
    }
}

fn nearest<'a>(keys: &'a [Key], name: &str) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('_', "-");
    let name = plain(name);
    let likeness = |key: &&Key| strsim::normalized_damerau_levenshtein(&name, key.name());
    let nearest = keys.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&nearest) >= ALIKE).then(|| nearest.name())
}
