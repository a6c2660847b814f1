//! Commands that are shown to a person to be typed next. They name the same server as the command that shows them, and every
//! word is quoted so that a shell takes it as it is.

use std::sync::OnceLock;

use crate::args::Globals;

/// The options that say which server this command talks to.
static SERVER: OnceLock<Vec<String>> = OnceLock::new();

/// Keeps what says which server it is, for every command that is shown later. A token is a secret and is never shown.
pub(crate) fn remember(globals: &Globals) {
    let mut words = Vec::new();
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([name.to_owned(), value]);
        }
    };
    let path = |path: &std::path::PathBuf| path.display().to_string();
    option("--url", globals.url.clone());
    option("--data-dir", globals.data_dir.as_ref().map(path));
    option("--token-file", globals.token_file.as_ref().map(path));
    // The program runs one command.
    let _ = SERVER.set(words);
}

/// `hearth`, the server's options, and these words. What is a placeholder for something is put behind it by the caller.
pub(crate) fn command<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let server = SERVER.get().into_iter().flatten().map(String::as_str);
    line(words, server)
}

fn line<'a>(words: impl IntoIterator<Item = &'a str>, server: impl IntoIterator<Item = &'a str>) -> String {
    let all = std::iter::once("hearth").chain(server).chain(words);
    all.map(word).collect::<Vec<_>>().join(" ")
}

/// One word as a shell takes it.
fn word(text: &str) -> String {
    // Only a NUL cannot be quoted, and nothing that got here holds one.
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_survives_a_shell() {
        let shown = line(
            ["pool", "set", "my shop's", "--enabled"],
            ["--data-dir", "/srv/my data"],
        );
        assert_eq!(
            shown,
            r#"hearth --data-dir '/srv/my data' pool set "my shop's" --enabled"#
        );
        let words = shlex::split(&shown).unwrap();
        assert_eq!(words[2..], ["/srv/my data", "pool", "set", "my shop's", "--enabled"]);
    }
}
