//! Plain words in pages, texts and comments: what people read who have never seen the code. The field has a word for each of
//! these things.

use super::code::{Kind, tokens};
use super::{Finding, Source};

/// A word of this project's own, and what the field says. A new one goes in when the texts are free of it.
struct Word {
    not: &'static str,
    say: &'static str,
}

const fn word(not: &'static str, say: &'static str) -> Word {
    Word { not, say }
}

/// Whole words, in any case.
const WORDS: [Word; 30] = [
    word("awake", "resumed"),
    word("become somebody", "assign an identity"),
    word("becomes somebody", "assigns an identity"),
    word("blueprint", "build plan"),
    word("bring forward", "update the checkout"),
    word("broom", "garbage collection"),
    word("brought forward", "updated"),
    word("forge", "git host"),
    word("forges", "git hosts"),
    word("go on", "continue"),
    word("goes on", "continues"),
    word("going on", "continuing"),
    word("keeper", "garbage collection"),
    word("last good", "previous recipe"),
    word("lie on", "are based on"),
    word("lies on", "is based on"),
    word("prove ready", "check ready"),
    word("rung", "queue"),
    word("stand still", "are paused"),
    word("standing still", "paused"),
    word("stands still", "is paused"),
    word("stood ready", "was ready"),
    word("stood still", "was paused"),
    word("throw away", "delete"),
    word("thrown away", "deleted"),
    word("throws away", "deletes"),
    word("wanted recipe", "target recipe"),
    word("went on", "continued"),
    word("whoever", "name who it is"),
    word("wish", "target"),
];

/// Pages that people read.
fn is_page(path: &str) -> bool {
    let pages = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];
    pages.contains(&path) || (path.starts_with("docs/") && path.ends_with(".md"))
}

/// Pages, texts and comments with a word of our own.
pub(super) fn plain_words(file: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (line, text) in public_texts(file) {
        let text = text.to_lowercase();
        for word in WORDS.iter().filter(|word| has_word(&text, word.not)) {
            found.push(Finding {
                line,
                what: format!("`{}`; say `{}`", word.not, word.say),
            });
        }
    }
    found
}

/// Whether a text has these words as whole words.
fn has_word(text: &str, words: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(words)
        .any(|(at, _)| !text[..at].ends_with(is_letter) && !text[at + words.len()..].starts_with(is_letter))
}

/// The texts of a file that reach people, with their lines.
fn public_texts(file: &Source) -> Vec<(usize, &str)> {
    if is_page(&file.path) {
        return file.lines().collect();
    }
    if file.path == "openapi.json" {
        let spoken = |line: &str| {
            let key = line.trim_start();
            key.starts_with("\"description\":") || key.starts_with("\"summary\":")
        };
        return file.lines().filter(|(_, line)| spoken(line)).collect();
    }
    let is_code = file.is_rust() && file.path.starts_with("crates/") && file.path.contains("/src/");
    // Statements of SQL name columns.
    if !is_code || file.path.contains("/tests/") || file.path.contains("store/") {
        return Vec::new();
    }
    tokens(&file.text)
        .into_iter()
        .filter(|token| token.kind == Kind::Text || token.is_comment())
        .map(|token| (token.line, token.text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        plain_words(&Source {
            path: path.to_owned(),
            text: text.to_owned(),
        })
        .len()
    }

    #[test]
    fn every_word_is_found_in_every_public_text() {
        for Word { not, .. } in WORDS {
            assert_eq!(found("README.md", &format!("A VM {not}.")), 1, "{not}");
            assert_eq!(
                found("docs/claims.md", &format!("# {}", not.to_uppercase())),
                1,
                "{not}"
            );
            assert_eq!(
                found("openapi.json", &format!("  \"description\": \"A VM {not}\",")),
                1,
                "{not}"
            );
            let code = format!("/// Help {not}\nfn f() {{ let text = \"says {not}\"; }} // {not}\n");
            assert_eq!(found("crates/hearth-core/src/claim.rs", &code), 3, "{not}");
        }
    }

    #[test]
    fn what_nobody_reads_and_parts_of_words_are_left_alone() {
        assert_eq!(found("crates/hearth/src/a.rs", "fn f() { let keeper = 1; }\n"), 0);
        assert_eq!(
            found(
                "crates/hearth/src/a.rs",
                "#[cfg(test)]\nmod tests { fn f() { \"the keeper\"; } }\n"
            ),
            0
        );
        assert_eq!(found("openapi.json", "  \"keeper\": {"), 0);
        assert_eq!(found("README.md", "bookkeepers, keeper_of"), 0);
    }
}
