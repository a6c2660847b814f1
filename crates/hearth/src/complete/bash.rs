//! bash's side: how it asks, and how it wants the answer. bash cuts words at `:` and `=` as well, so that they have to be put
//! together again; and it takes what it gets as if it had been typed, so that everything that it would act on is quoted.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::env::EnvCompleter;

/// What is typed, to the cursor.
const LINE: &str = "HEARTH_COMPLETE_LINE";
/// Which of bash's words is completed.
const INDEX: &str = "HEARTH_COMPLETE_INDEX";
/// What of this word bash replaces.
const WORD: &str = "HEARTH_COMPLETE_WORD";

/// One candidate a line. A candidate that more can be added to gets no blank.
const SCRIPT: &str = r#"_hearth() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <(
        @VARIABLE@=bash @INDEX@="$COMP_CWORD" @LINE@="${COMP_LINE:0:COMP_POINT}" @WORD@="$2" \
            @PROGRAM@ -- "${COMP_WORDS[@]}" 2>/dev/null
    )
    if [[ "${COMPREPLY-}" =~ [=/:]$ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o nosort -F _hearth @BIN@ 2>/dev/null || complete -F _hearth @BIN@"#;

/// How bash is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == self.name()
    }

    fn write_registration(
        &self,
        var: &str,
        _name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let quoted = |text| shlex::try_quote(text).map_err(io::Error::other);
        let script = SCRIPT
            .replace("@VARIABLE@", var)
            .replace("@INDEX@", INDEX)
            .replace("@LINE@", LINE)
            .replace("@WORD@", WORD)
            .replace("@BIN@", &quoted(bin)?)
            .replace("@PROGRAM@", &quoted(completer)?);
        writeln!(buf, "{script}")
    }

    fn write_complete(
        &self,
        cmd: &mut Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let text = |name| std::env::var(name).unwrap_or_default();
        let args: Vec<String> = args
            .into_iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let index = text(INDEX).parse().unwrap_or(usize::MAX);
        let asked = Asked::new(&args, index, &text(LINE), &text(WORD));
        super::remember(&asked.before);
        let mut words: Vec<OsString> = asked.before.iter().map(OsString::from).collect();
        words.push(OsString::from(&asked.word));
        let index = words.len() - 1;
        for candidate in clap_complete::engine::complete(cmd, words, index, current_dir)? {
            let value = candidate.get_value().to_string_lossy();
            let rest = value.strip_prefix(asked.kept.as_str()).unwrap_or(&value);
            if !rest.contains(char::is_control) {
                writeln!(buf, "{}", quoted(rest))?;
            }
        }
        Ok(())
    }
}

/// What bash asks.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// The whole words before the one that is completed.
    before: Vec<String>,
    /// The one that is completed.
    word: String,
    /// Its beginning, which bash keeps.
    kept: String,
}

impl Asked {
    fn new(words: &[String], index: usize, line: &str, current: &str) -> Self {
        let mut whole: Vec<String> = Vec::new();
        let mut rest = line;
        for word in words.iter().take(index) {
            let place = rest.find(word.as_str()).unwrap_or_default();
            let touches = place == 0 && !whole.is_empty() && rest.starts_with(word.as_str());
            rest = rest.get(place + word.len()..).unwrap_or_default();
            match whole.last_mut() {
                Some(last) if touches => last.push_str(word),
                _ => whole.push(word.clone()),
            }
        }
        // What is left is the last word, with the blanks before it where it is one of its own.
        let separate = rest.starts_with(char::is_whitespace) || whole.len() < 2;
        let left = rest.trim_start();
        let beginning = if separate { None } else { whole.pop() };
        let raw = beginning.unwrap_or_default() + left;
        // bash gives an opening quote with the line and not with the word.
        let kept_raw = raw.strip_suffix(current).unwrap_or_default();
        let kept = if kept_raw.ends_with([':', '=']) {
            unquoted(kept_raw)
        } else {
            String::new()
        };
        Self {
            before: whole.iter().map(|word| unquoted(word)).collect(),
            word: unquoted(&raw),
            kept,
        }
    }
}

/// As the shell takes it; a quote may still be open.
fn unquoted(word: &str) -> String {
    let closed = [word.to_owned(), format!("{word}'"), format!("{word}\"")]
        .iter()
        .find_map(|word| shlex::split(word).filter(|words| words.len() < 2));
    match closed {
        Some(words) => words.into_iter().next().unwrap_or_default(),
        None => word.to_owned(),
    }
}

/// With a backslash before everything that bash would act on.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_alphanumeric() || "_-./:=@%+,~".contains(c)) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str, words: &[&str], current: &str) -> (String, String, String) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let asked = Asked::new(&words, words.len() - 1, line, current);
        (asked.before.join(" "), asked.word, asked.kept)
    }

    fn is(before: &str, word: &str, kept: &str) -> (String, String, String) {
        (before.to_owned(), word.to_owned(), kept.to_owned())
    }

    #[test]
    fn words_that_bash_has_cut_are_whole_again() {
        let cut = ["hearth", "cp", "T1", ":", "app/s"];
        assert_eq!(
            asked("hearth cp T1:app/s", &cut, "app/s"),
            is("hearth cp", "T1:app/s", "T1:")
        );
        assert_eq!(asked("hearth cp T1:", &cut[..4], ""), is("hearth cp", "T1:", "T1:"));
        let apart = ["hearth", "cp", "T1", ":", "a", ""];
        assert_eq!(asked("hearth cp T1:a ", &apart, ""), is("hearth cp T1:a", "", ""));
        let url = ["hearth", "--url", "=", "http", ":", "//h", ":", "1", "ps", "w"];
        assert_eq!(
            asked("hearth --url=http://h:1 ps w", &url, "w"),
            is("hearth --url=http://h:1 ps", "w", "")
        );
        assert_eq!(asked("hearth ps ", &["hearth", "ps", ""], ""), is("hearth ps", "", ""));
        assert_eq!(asked("hearth p", &["hearth", "p"], "p"), is("hearth", "p", ""));
    }

    #[test]
    fn quotes_that_are_still_open_are_no_part_of_a_word() {
        let words = ["hearth", "claim", "'my s"];
        assert_eq!(
            asked("hearth claim 'my s", &words, "my s"),
            is("hearth claim", "my s", "")
        );
        let words = ["hearth", "claim", "my\\ s"];
        assert_eq!(
            asked("hearth claim my\\ s", &words, "my\\ s"),
            is("hearth claim", "my s", "")
        );
    }

    #[test]
    fn what_bash_would_act_on_is_quoted() {
        assert_eq!(quoted("fix-17"), "fix-17");
        assert_eq!(quoted("my $(shop)"), "my\\ \\$\\(shop\\)");
    }
}
