//! What a text must be, as data: the published schema, the reader of requests and the message of a refusal are all made from it.

use std::fmt;

use fancy_regex::Regex;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

/// Bounds and pattern of one kind of text, with what they mean for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Fewest characters.
    pub min_chars: usize,
    /// Most characters.
    pub max_chars: usize,
    /// The pattern, as JSON Schema reads it.
    pub pattern: &'static str,
    /// What a text that breaks the pattern must be instead.
    pub message: &'static str,
    /// A text that keeps the rule.
    pub example: Option<&'static str>,
}

/// What is wrong with a text. It never quotes the text, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// The message for a text that is too long.
#[must_use]
pub fn at_most(chars: impl fmt::Display) -> String {
    format!("must be at most {chars} characters")
}

/// The message for a text that is too short.
#[must_use]
pub fn at_least(chars: u64) -> String {
    match chars {
        1 => "must not be empty".to_owned(),
        chars => format!("must be at least {chars} characters"),
    }
}

impl Rule {
    /// Checks a text. `regex` is the rule's own pattern, compiled.
    pub(crate) fn check(&self, regex: Option<&Regex>, text: &str) -> Result<(), Invalid> {
        // Bytes are never fewer than characters, so most texts need not be counted.
        if text.len() > self.max_chars && text.chars().count() > self.max_chars {
            return Err(Invalid(at_most(self.max_chars)));
        }
        if text.len() < self.min_chars || text.chars().count() < self.min_chars {
            return Err(Invalid(at_least(self.min_chars as u64)));
        }
        // A pattern that gives up has not said yes.
        if !regex.is_some_and(|regex| regex.is_match(text).unwrap_or_default()) {
            return Err(Invalid(self.message.to_owned()));
        }
        Ok(())
    }

    /// The pattern, ready for use. That every one can be compiled is tested.
    pub(crate) fn compile(&self) -> Option<Regex> {
        Regex::new(self.pattern).ok()
    }

    /// The schema that the public document shows.
    pub(crate) fn schema(&self, comment: &[&str]) -> RefOr<Schema> {
        let lines: Vec<&str> = comment.iter().map(|line| line.trim()).collect();
        let description = (!lines.is_empty()).then(|| lines.join("\n"));
        let object = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(description)
            .min_length((self.min_chars > 0).then_some(self.min_chars))
            .max_length(Some(self.max_chars))
            .pattern(Some(self.pattern))
            .examples(self.example.map(serde_json::Value::from));
        RefOr::T(Schema::Object(object.build()))
    }
}
