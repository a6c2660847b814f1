//! Commands that are shown to a person to be typed next. They name the same server as the command that shows them, and every
//! word is quoted so that a shell takes it as it is. The server's own sentences hold commands too, in backquotes: it does not know
//! how this program found it, so what is missing is added here.

use std::sync::OnceLock;

use crate::args::Globals;

/// How every command begins.
const PROGRAM: &str = "hearth ";
/// The option that names a server of this machine.
const DATA_DIR: &str = "--data-dir";
/// Commands that work on a data folder instead of asking a server.
const ON_THE_SERVER: [&str; 6] = ["backup", "image", "restore", "serve", "store", "uninstall"];
/// Commands that need neither.
const AT_NO_SERVER: [&str; 4] = ["completion", "config", "man", "openapi"];

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
    option(DATA_DIR, globals.data_dir.as_ref().map(path));
    option("--ca", globals.ca.as_ref().map(path));
    option("--token-file", globals.token_file.as_ref().map(path));
    // The program runs one command.
    let _ = SERVER.set(words);
}

/// `hearth`, the server's options, and these words. What is a placeholder for something is put behind it by the caller.
pub(crate) fn command<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let server = SERVER.get().into_iter().flatten().map(String::as_str);
    line(words, server)
}

/// A text in which every command of this program, in backquotes, names the server; one that names it already stays as it is.
pub(crate) fn complete(text: &str) -> String {
    match SERVER.get() {
        Some(server) if !server.is_empty() => with_options(text, server),
        _ => text.to_owned(),
    }
}

fn with_options(text: &str, server: &[String]) -> String {
    let mut parts = Vec::new();
    for (at, part) in text.split('`').enumerate() {
        let rest = part.strip_prefix(PROGRAM).filter(|_| at % 2 == 1);
        parts.push(
            rest.and_then(|rest| completed(rest, server))
                .unwrap_or_else(|| part.to_owned()),
        );
    }
    parts.join("`")
}

/// A command, given without the program's name; `None` when nothing is to be added.
fn completed(rest: &str, server: &[String]) -> Option<String> {
    let first = rest.split_whitespace().next()?;
    let asks_for_help = rest.split_whitespace().any(|word| word == "--help");
    if first.starts_with('-') || asks_for_help || AT_NO_SERVER.contains(&first) {
        return None;
    }
    let options = server.chunks_exact(2).filter(|option| {
        // What is done on the server's own machine finds it by its folder.
        option[0] == DATA_DIR || !ON_THE_SERVER.contains(&first)
    });
    let words: Vec<String> = options.flatten().map(|text| word(text)).collect();
    (!words.is_empty()).then(|| format!("{PROGRAM}{} {rest}", words.join(" ")))
}

/// The same for the server of another data folder.
pub(crate) fn command_at(data_dir: &std::path::Path, words: &[&str]) -> String {
    let folder = data_dir.display().to_string();
    line(words.iter().copied(), [DATA_DIR, folder.as_str()])
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

    #[test]
    fn commands_in_sentences_of_the_server_name_it() {
        let server = ["--url", "http://h:1", DATA_DIR, "/srv/my data"].map(str::to_owned);
        let both = "--url http://h:1 --data-dir '/srv/my data'";
        for (text, becomes) in [
            (
                "try `hearth pool retry web`; `branch` and `hearth`",
                format!("try `hearth {both} pool retry web`; `branch` and `hearth`"),
            ),
            (
                "more VMs (`hearth serve --max-vms`)",
                "more VMs (`hearth --data-dir '/srv/my data' serve --max-vms`)".to_owned(),
            ),
            (
                "see `hearth setup save --help`",
                "see `hearth setup save --help`".to_owned(),
            ),
            (
                "`hearth release a` or `hearth shell a`",
                format!("`hearth {both} release a` or `hearth {both} shell a`"),
            ),
            ("hearth pool retry web", "hearth pool retry web".to_owned()),
        ] {
            let completed = with_options(text, &server);
            assert_eq!(completed, becomes);
            assert_eq!(with_options(&completed, &server), becomes, "it is completed once");
        }
    }
}
