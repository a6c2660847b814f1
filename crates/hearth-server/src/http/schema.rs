//! Checks a request body against the published document and says everything that is wrong with it, field by field. Values are
//! never quoted: they may be secrets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use hearth_api::error::FieldError;
use hearth_api::values::{at_least, at_most, pattern_message};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::{Value, json};

use super::openapi::{DOCUMENT, REFERENCE, reached};

/// Most faults of one request that are listed.
const MAX_FAULTS: usize = 100;

/// One validator for each schema of the document, made when it is first needed; `None` inside for one that cannot be used.
static VALIDATORS: LazyLock<HashMap<&'static str, OnceLock<Option<Validator>>>> = LazyLock::new(|| {
    let schemas = DOCUMENT["components"]["schemas"].as_object();
    let names = schemas.into_iter().flat_map(|schemas| schemas.keys());
    names.map(|name| (name.as_str(), OnceLock::new())).collect()
});

fn validator_of(name: &str) -> Option<&'static Validator> {
    let (name, made) = VALIDATORS.get_key_value(name)?;
    let schema = || validator(json!({ "$ref": format!("{REFERENCE}{name}") }), name);
    made.get_or_init(schema).as_ref()
}

/// The query parameters of each operation that has any, by method and path.
static QUERIES: LazyLock<HashMap<(String, String), Vec<Parameter>>> = LazyLock::new(|| {
    let mut queries = HashMap::new();
    for (path, item) in DOCUMENT["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let parameters: Vec<_> = parameters.filter_map(Parameter::read).collect();
            queries.insert((method.to_uppercase(), path.clone()), parameters);
        }
    }
    queries
});

struct Parameter {
    name: String,
    kind: Option<String>,
    is_required: bool,
    validator: Validator,
}

impl Parameter {
    fn read(parameter: &Value) -> Option<Self> {
        if parameter["in"] != "query" {
            return None;
        }
        let name = parameter["name"].as_str()?.to_owned();
        let schema = parameter["schema"].clone();
        let kind = schema["type"].as_str().map(str::to_owned);
        let validator = validator(schema, &name)?;
        Some(Self {
            name,
            kind,
            is_required: parameter["required"] == true,
            validator,
        })
    }

    /// What a text in a query says, by the parameter's type; what it cannot be stays a text and fails the check.
    fn value(&self, text: &str) -> Value {
        let as_text = || Value::String(text.to_owned());
        match self.kind.as_deref() {
            Some("integer") => text.parse::<i64>().map_or_else(|_| as_text(), Value::from),
            Some("boolean") => text.parse::<bool>().map_or_else(|_| as_text(), Value::from),
            _ => as_text(),
        }
    }

    fn fault(&self, text: &str) -> Option<FieldError> {
        let value = self.value(text);
        let error = self.validator.iter_errors(&value).next()?;
        let message = match (self.kind.as_deref(), &value) {
            (Some("boolean"), Value::String(_)) => "must be true or false".to_owned(),
            (Some("integer"), Value::String(_)) => "must be a whole number".to_owned(),
            _ => message(&error),
        };
        Some(fault(self.name.clone(), message))
    }
}

/// Everything that is wrong with a query by the parameters of this operation. Parameters that it does not have are ignored.
pub fn query_faults(route: &str, method: &str, given: &[(Cow<'_, str>, Cow<'_, str>)]) -> Vec<FieldError> {
    let parameters = QUERIES.get(&(method.to_owned(), route.to_owned()));
    let mut faults = Vec::new();
    for parameter in parameters.into_iter().flatten() {
        let mut texts = given
            .iter()
            .filter(|(name, _)| *name == parameter.name)
            .map(|(_, text)| text);
        match (texts.next(), texts.next()) {
            (Some(_), Some(_)) => faults.push(fault(parameter.name.clone(), "is given more than once")),
            (Some(text), None) => faults.extend(parameter.fault(text)),
            (None, _) if parameter.is_required => faults.push(fault(parameter.name.clone(), "is missing")),
            (None, _) => {}
        }
    }
    faults
}

fn validator(mut schema: Value, name: &str) -> Option<Validator> {
    // Only what it uses: with the whole document each validator takes more than a MiB.
    schema["components"] = json!({ "schemas": reached(&schema) });
    let options = jsonschema::draft202012::options();
    // A format is a promise, as every other bound is.
    match options.should_validate_formats(true).build(&schema) {
        Ok(validator) => Some(validator),
        Err(error) => {
            tracing::error!(%error, name, "a schema of our own document cannot be used");
            None
        }
    }
}

/// Everything that is wrong with a body by the schema of this name.
pub fn faults(schema: &str, body: &Value) -> Vec<FieldError> {
    let Some(validator) = validator_of(schema) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    for error in validator.iter_errors(body).take(MAX_FAULTS) {
        collect(&error, body, &mut faults);
    }
    // Alternatives of a whole body, as of `ExecRequest`: the words that the document has for them.
    if let Some(alternatives) = alternatives(schema) {
        let given = alternatives.iter().filter(|name| body.get(name).is_some()).count();
        let both = if given > 1 { ", not both" } else { "" };
        for fault in &mut faults {
            if fault.path == "." && body.is_object() || given == 0 && alternatives.contains(&fault.path.as_str()) {
                fault.path = ".".to_owned();
                fault.message = format!("give either `{}`{both}", alternatives.join("` or `"));
            }
        }
    }
    // An empty text breaks its pattern too; the first fault says enough.
    faults.dedup_by(|later, first| later.path == first.path);
    faults
}

/// The fields of which a body by this schema has exactly one.
fn alternatives(schema: &str) -> Option<Vec<&'static str>> {
    let branches = DOCUMENT["components"]["schemas"][schema]["oneOf"].as_array()?;
    branches.iter().map(|branch| branch["required"][0].as_str()).collect()
}

fn collect(error: &ValidationError<'_>, body: &Value, faults: &mut Vec<FieldError>) {
    let at = error.instance_path().as_str();
    match error.kind() {
        ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
            // A nullable field: what is wrong by the branch that is not `null`. Or alternatives: by the nearest one.
            let instance = body.pointer(at).unwrap_or(&Value::Null);
            let branch = context
                .iter()
                .filter(|errors| !errors.iter().any(is_null_branch) || instance.is_null())
                .min_by_key(|errors| errors.len());
            for error in branch.into_iter().flatten() {
                collect(error, body, faults);
            }
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            faults.push(fault(member(at, name), "is missing"));
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            for name in unexpected {
                faults.push(fault(member(at, name), "is not known here"));
            }
        }
        ValidationErrorKind::PropertyNames { error } => {
            faults.push(fault(path(at), format!("has a name that {}", message(error))));
        }
        _ => faults.push(fault(path(at), message(error))),
    }
}

fn is_null_branch(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Type { kind: TypeKind::Single(only) } if only.to_string() == "null")
}

fn fault(path: String, message: impl Into<String>) -> FieldError {
    FieldError {
        path,
        message: message.into(),
    }
}

/// The path of an object's member, from the object's pointer.
fn member(at: &str, name: &str) -> String {
    path(&format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")))
}

/// `/setupCommands/2/name` → `setupCommands[2].name`; the whole body is `.`.
fn path(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part.replace("~1", "/").replace("~0", "~"));
        }
    }
    if path.is_empty() { ".".to_owned() } else { path }
}

fn message(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Type { kind } => {
            let types = match kind {
                TypeKind::Single(one) => one.to_string(),
                TypeKind::Multiple(many) => many.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or "),
            };
            format!("must be of the type {types}")
        }
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::MaxLength { limit } => at_most(limit),
        ValidationErrorKind::MinLength { limit } => at_least(*limit),
        ValidationErrorKind::MaxItems { limit } => format!("must be at most {limit} items"),
        ValidationErrorKind::MinItems { limit } => format!("must be at least {limit} items"),
        ValidationErrorKind::Pattern { pattern } => {
            pattern_message(pattern).map_or_else(|| format!("must match {pattern}"), str::to_owned)
        }
        ValidationErrorKind::Enum { options } => {
            let names = options.as_array().into_iter().flatten();
            let names: Vec<_> = names.map(|name| name.as_str().unwrap_or_default()).collect();
            format!("must be one of {}", names.join(", "))
        }
        ValidationErrorKind::Format { format } if format == "date-time" => {
            "must be an RFC 3339 time like 2027-01-31T12:00:00Z, at most the year 9999".to_owned()
        }
        ValidationErrorKind::OneOfMultipleValid { .. } => {
            "gives alternatives of which only one may be given".to_owned()
        }
        _ => error.masked().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(schema: &str, body: Value) -> Vec<(String, String)> {
        faults(schema, &body)
            .into_iter()
            .map(|fault| (fault.path, fault.message))
            .collect()
    }

    #[test]
    fn every_schema_of_the_document_can_be_used() {
        let schemas = DOCUMENT["components"]["schemas"].as_object().unwrap();
        assert!(schemas.len() > 100);
        for name in schemas.keys() {
            assert!(validator_of(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_pattern_of_the_document_has_a_meaning() {
        fn patterns(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(pattern)) = object.get("pattern") {
                        found.push(pattern.clone());
                    }
                    object.values().for_each(|value| patterns(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| patterns(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        patterns(&DOCUMENT["components"]["schemas"], &mut found);
        assert!(found.len() > 5);
        for pattern in found {
            assert!(pattern_message(&pattern).is_some(), "{pattern}");
        }
    }

    #[test]
    fn all_faults_are_said_at_once_and_no_value_is_quoted() {
        let body = json!({
            "enabled": "geheim", "targetSize": 21, "maxAgeMinutes": null, "branch": "-x",
            "setupCommands": [{ "name": "geheim\n", "command": " " }, { "name": 1 }]
        });
        let said = said("PatchPool", body);
        let paths: Vec<&str> = said.iter().map(|(path, _)| path.as_str()).collect();
        for path in [
            "enabled",
            "targetSize",
            "maxAgeMinutes",
            "branch",
            "setupCommands[0].name",
            "setupCommands[0].command",
            "setupCommands[1].name",
            "setupCommands[1].command",
        ] {
            assert!(paths.contains(&path), "{path}: {said:?}");
        }
        assert!(!format!("{said:?}").contains("geheim"), "{said:?}");
    }

    #[test]
    fn unknown_and_missing_fields_are_named() {
        assert_eq!(
            said("CreateProject", json!({ "more": 1 })),
            [
                ("more".to_owned(), "is not known here".to_owned()),
                ("name".to_owned(), "is missing".to_owned())
            ]
        );
        assert_eq!(said("PatchPool", json!([]))[0].0, ".");
        assert!(said("PatchPool", json!({ "unknown": 1, "branch": null })).is_empty());
    }

    #[test]
    fn branches_follow_gits_rules() {
        for (branch, fine) in [
            ("main", true),
            ("feature/ä-1", true),
            ("-x", false),
            ("a..b", false),
            ("a b", false),
            ("", false),
            ("a.lock", false),
            ("x/.y", false),
            ("a@{b", false),
            ("@", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("a.lock/b", false),
        ] {
            assert_eq!(faults("Branch", &json!(branch)).is_empty(), fine, "{branch}");
        }
    }

    #[test]
    fn urls_that_run_programs_or_hold_credentials_are_refused() {
        for good in [
            "https://h/o/n.git",
            "file:///srv/x",
            "ssh://git@h/o/n",
            "git@h.example:o/n.git",
            "http://127.0.0.1:80/x",
            "http://[::1]:80/x",
        ] {
            assert!(faults("RepoUrl", &json!(good)).is_empty(), "{good}");
        }
        for bad in [
            "ext::sh -c x",
            "https://user:pw@h/x",
            "https://token@h/x",
            "-oProxy=x:y",
            "",
            "ftp://h/x",
            "ssh://-o/x",
            "/tmp/x",
            "file://x",
            "git@h:-x",
        ] {
            assert!(!faults("RepoUrl", &json!(bad)).is_empty(), "{bad}");
        }
    }
}
