//! Texts for shells.

/// A word that a shell takes as it is.
pub(crate) fn quote(text: &str) -> String {
    // Files with a zero byte are refused, so none gets here.
    shlex::try_quote(text).map_or_else(|_| "''".to_owned(), |quoted| quoted.into_owned())
}

/// A command without a shell, as a text for one.
pub(crate) fn words(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// In double quotes: variables are put in by the shell, and nothing else is done.
#[must_use]
pub fn expanding(text: &str) -> String {
    let mut quoted = String::from("\"");
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '`' => {
                quoted.push('\\');
                quoted.push(c);
            }
            '\\' => quoted.push_str(if chars.peek() == Some(&'$') { "\\" } else { "\\\\" }),
            // No command is run for a value.
            '$' if chars.peek() == Some(&'(') => quoted.push_str("\\$"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Sets a variable for this command, for all later ones and for every program in the VM. The value is a word of the shell.
pub(crate) fn keep_variable(name: &str, value: &str) -> String {
    format!("export {name}={value}; printf \"%s='%s'\\n\" {name} \"${name}\" >>/etc/environment")
}

/// Whether a name can be a variable's.
pub(crate) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a name can be a user's.
pub(crate) fn is_user(name: &str) -> bool {
    name.len() <= 32
        && name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

/// A command as it is shown: its first line, and not all of a long one.
pub(crate) fn shown(command: &str) -> String {
    /// Characters of it.
    const SHOWN: usize = 72;
    let mut lines = command.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    match (first.char_indices().nth(SHOWN), lines.next()) {
        (Some((cut, _)), _) => format!("`{}…`", &first[..cut]),
        (None, Some(_)) => format!("`{first} …`"),
        (None, None) => format!("`{first}`"),
    }
}
