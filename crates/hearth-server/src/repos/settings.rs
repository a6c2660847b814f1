//! Reads a repository's own settings file. What it may say is [`Settings`]; unknown keys are left to newer versions.

use hearth_api::patch::Object;
use hearth_api::settings::Settings;

use super::mirrors::{MirrorCommit, MirrorError};

/// Hearth's own file; where it exists, [`LEGACY_FILE`] is not read.
const OWN_FILE: &str = ".hearth/settings.json";
/// The documented service's file, whose hooks a saved setup object replaces.
pub const LEGACY_FILE: &str = ".capy/settings.json";

/// The settings file that counts, and its content: Hearth's own, else the documented service's.
pub async fn find(head: &MirrorCommit) -> Result<Option<(&'static str, Vec<u8>)>, MirrorError> {
    for file in [OWN_FILE, LEGACY_FILE] {
        if let Some(content) = head.file(file).await? {
            return Ok(Some((file, content)));
        }
    }
    Ok(None)
}

/// What the file says, or a sentence that says what is broken and where.
pub fn read(file: &str, content: &[u8]) -> Result<Settings, String> {
    let broken = |error: serde_json::Error| {
        // serde_json appends its own "at line 1 column 2"; the position goes in front, as compilers do it.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        format!(
            "{file} is broken at line {}, column {}: {what}",
            error.line(),
            error.column()
        )
    };
    // Some editors begin a file with a mark of its encoding.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(format!("{file} is in UTF-16; save it as UTF-8"));
    }
    // The syntax of the whole file first: a slip of the pen is not to be reported as a wrong type.
    serde_json::from_slice::<serde::de::IgnoredAny>(content).map_err(broken)?;
    let Object(mut settings) = serde_json::from_slice::<Object<Settings>>(content).map_err(broken)?;
    if file == LEGACY_FILE {
        // The documented service knows none of these keys.
        (settings.hooks.update_after_checkout, settings.hooks.startup) = (None, None);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_objects_are_commands_and_unknown_keys_are_ignored() {
        let text = br#"{"x":1,"hooks":{"setup":["a",{"command":"b","more":2}],"other":[]}}"#;
        let settings = read("f", text).unwrap();
        let commands: Vec<_> = settings.hooks.setup.iter().map(|hook| hook.command()).collect();
        assert_eq!(commands, ["a", "b"]);
        assert_eq!(read("f", b"{}").unwrap(), Settings::default());
    }

    #[test]
    fn terminals_previews_and_tool_hooks_are_read() {
        let text = br#"{"hooks":{"terminals":[{"name":"dev","command":"x"}],"previews":[{"name":"app","port":3000}],
            "tools":{"pre":{"edit":["lint"]}},"context":{"maxOutputLength":2000,"truncateStrategy":"tail"}}}"#;
        let hooks = read("f", text).unwrap().hooks;
        assert_eq!((hooks.terminals.len(), hooks.previews[0].port.get()), (1, 3000));
        assert_eq!(hooks.tools.unwrap().pre["edit"], ["lint"]);
        assert_eq!(hooks.context.unwrap().max_output_length, Some(2000));
    }

    #[test]
    fn a_byte_order_mark_is_no_fault_and_utf_16_is_named() {
        let marked = b"\xef\xbb\xbf{\"hooks\":{\"setup\":[\"a\"]}}\r\n";
        let settings = read("f", marked).unwrap();
        assert_eq!(settings.hooks.setup[0].command(), "a");
        let broken = read("f", b"\xef\xbb\xbf{\r\n  ]").unwrap_err();
        assert!(broken.starts_with("f is broken at line 2, column 3: "), "{broken}");
        let utf16 = read("f", b"\xff\xfe{\0}\0").unwrap_err();
        assert_eq!(utf16, "f is in UTF-16; save it as UTF-8");
    }

    #[test]
    fn a_broken_file_is_named_with_line_and_column() {
        let error = read("f", b"{\n  \"hooks\": {]\n").unwrap_err();
        assert!(error.starts_with("f is broken at line 2, column 13: "), "{error}");
        for (text, says) in [
            (r#"{"hooks":{"setup":[1]}}"#, "a command: a string or an object"),
            (r#"{"hooks":{"previews":[{"name":"a","port":0}]}}"#, "nonzero"),
            (r#"{"hooks":{"terminals":[{"name":"a"}]}}"#, "missing field `command`"),
            ("[]", "an object"),
        ] {
            let error = read("f", text.as_bytes()).unwrap_err();
            assert!(
                error.starts_with("f is broken at line 1") && error.contains(says),
                "{error}"
            );
        }
    }
}
