//! The fields of the API in the words of this program: a refusal of `targetSize` is about `--target` here.

/// A field and what this program calls it. A field inside a list stands without its number.
const WORDS: &[(&str, &str)] = &[
    ("branch", "--branch"),
    ("cwd", "--cwd"),
    ("description", "--description"),
    ("enabled", "--enabled"),
    ("env", "--env"),
    ("expiresAt", "--expires"),
    ("expiresInSeconds", "--for"),
    ("image", "--image"),
    ("limit", "--limit"),
    ("maxAgeMinutes", "--max-age"),
    ("maxVms", "--max-vms"),
    ("minutes", "--by"),
    ("miss", "--miss"),
    ("owner", "--owner"),
    ("projectId", "--project"),
    ("projectSetup", "--setup"),
    ("repos", "--repo"),
    ("scopes", "--scope"),
    ("setupCommands", "--command"),
    ("status", "--status"),
    ("strict", "--strict"),
    ("targetSize", "--target"),
    ("taskCode", "--task-code"),
    ("taskId", "--task"),
    ("tenant", "--tenant"),
    ("timeoutSeconds", "--timeout"),
    ("ttlMinutes", "--ttl"),
    ("user", "--user"),
    ("variables", "variable"),
    ("vmSize", "--size"),
    ("waitMs", "--wait"),
    ("Idempotency-Key", "--task"),
];

/// What a field with a value is called here, where that is not the field's word and the value behind it.
const VALUES: &[(&str, &str)] = &[
    ("enabled: false", "--disabled"),
    ("enabled: true", "--enabled"),
    ("lfs: false", "--no-lfs"),
    ("lfs: true", "--lfs"),
    ("strict: true", "--strict"),
    ("submodules: false", "--no-submodules"),
    ("submodules: true", "--submodules"),
];

/// The word for a field's path: `targetSize` → `--target`, `setupCommands[1].name` → `--command number 2, name`. `None` for what
/// this program has no word for.
pub(crate) fn of(path: &str) -> Option<String> {
    // A stream's first message holds the request.
    let path = path.strip_prefix("request.").unwrap_or(path);
    let end = path.find(['[', '.']).unwrap_or(path.len());
    let (field, rest) = path.split_at(end);
    let (_, word) = WORDS.iter().find(|(known, _)| *known == field)?;
    let mut text = (*word).to_owned();
    if field == "waitMs" {
        // The option is in seconds, what the server says of it is not.
        text.push_str(" (in milliseconds)");
    }
    for part in rest.split(['[', '.']).filter(|part| !part.is_empty()) {
        match part.strip_suffix(']').and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => text.push_str(&format!(" number {}", number + 1)),
            None if field == "env" => text.push_str(&format!(" {part}")),
            None => text.push_str(&format!(", {part}")),
        }
    }
    Some(text)
}

/// A sentence of the server in which fields stand in backquotes, with the words of this program instead.
pub(crate) fn in_sentence(text: &str) -> String {
    let mut parts = Vec::new();
    for (at, part) in text.split('`').enumerate() {
        let word = if at % 2 == 1 { quoted(part) } else { None };
        parts.push(word.unwrap_or_else(|| part.to_owned()));
    }
    parts.join("`")
}

/// `miss` → `--miss`, `miss: require` → `--miss require`.
fn quoted(part: &str) -> Option<String> {
    let word = |wanted: &str| WORDS.iter().find(|(field, _)| *field == wanted).map(|(_, word)| *word);
    if let Some((_, option)) = VALUES.iter().find(|(text, _)| *text == part) {
        return Some((*option).to_owned());
    }
    match part.split_once(": ") {
        None => word(part).map(str::to_owned),
        Some((field, value)) => word(field).map(|word| format!("{word} {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_of_options() {
        for (path, word) in [
            ("targetSize", Some("--target")),
            ("setupCommands[1].name", Some("--command number 2, name")),
            ("repos[0].branch", Some("--repo number 1, branch")),
            ("env.MY_KEY", Some("--env MY_KEY")),
            ("repositories[0].branch", None),
            ("variables[0].value", Some("variable number 1, value")),
            (".", None),
        ] {
            assert_eq!(of(path).as_deref(), word, "{path}");
        }
    }

    #[test]
    fn only_fields_in_backquotes_are_replaced() {
        assert_eq!(
            in_sentence("used for another claim (`branch` and `ttlMinutes` differ); see `GET /x` and branch"),
            "used for another claim (`--branch` and `--ttl` differ); see `GET /x` and branch"
        );
        for (said, becomes) in [
            ("without `miss: require`", "without `--miss require`"),
            ("or do without (`lfs: false`)", "or do without (`--no-lfs`)"),
            ("(`waitMs`), its `maxVms` is 0", "(`--wait`), its `--max-vms` is 0"),
            ("`hearth pool set web`: `a: b`", "`hearth pool set web`: `a: b`"),
        ] {
            assert_eq!(in_sentence(said), becomes);
        }
    }
}
