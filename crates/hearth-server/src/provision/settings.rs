//! A repository's own settings: `.hearth/settings.json`, else `.capy/settings.json`. Only `hooks.setup` is read here;
//! unknown keys are left to newer versions.

use serde::Deserialize;

/// The files that may hold the settings; the first that exists wins.
pub const FILES: [&str; 2] = [".hearth/settings.json", ".capy/settings.json"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    hooks: Hooks,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hooks {
    setup: Vec<Hook>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a command: a string or an object with \"command\"")]
enum Hook {
    Text(String),
    Object { command: String },
}

/// The commands of `hooks.setup`, or a sentence that says what is broken and where.
pub fn setup_hooks(file: &str, content: &[u8]) -> Result<Vec<String>, String> {
    let settings: Settings = serde_json::from_slice(content).map_err(|error| {
        // serde_json appends its own "at line 1 column 2"; the position goes in front, as compilers do it.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        format!(
            "{file} is broken at line {}, column {}: {what}",
            error.line(),
            error.column()
        )
    })?;
    Ok(settings
        .hooks
        .setup
        .into_iter()
        .map(|hook| match hook {
            Hook::Text(command) | Hook::Object { command } => command,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_objects_are_commands_and_the_rest_is_ignored() {
        let text = br#"{"x":1,"hooks":{"setup":["a",{"command":"b","more":2}],"other":[]}}"#;
        assert_eq!(setup_hooks("f", text).unwrap(), ["a", "b"]);
        assert!(setup_hooks("f", b"{}").unwrap().is_empty());
    }

    #[test]
    fn a_broken_file_is_named_with_line_and_column() {
        let error = setup_hooks("f", b"{\n  \"hooks\": {]\n").unwrap_err();
        assert!(error.starts_with("f is broken at line 2, column 13: "), "{error}");
        let error = setup_hooks("f", br#"{"hooks":{"setup":[1]}}"#).unwrap_err();
        assert!(error.contains("a command: a string or an object"), "{error}");
    }
}
