//! The rules. Words that a rule looks for are put together here, so that this file does not break it.

use super::code::{Kind, tokens};
use super::links::dead_links;
use super::{Check, Finding, Rule, Source, finding, rooms, words};
use crate::test::{AS_ROOT, NOT_A_TEST};

/// Longest file.
const MAX_LINES: usize = 600;
/// The comments that let a test pause: inside a helper that looks again and again until a deadline, and before a
/// disturbance whose moment is what is being varied.
const PAUSE_COMMENTS: [&str; 2] = ["pause between two checks", "the moment of a disturbance"];

pub(super) const ALL: &[Rule] = &[
    Rule {
        name: "a file has at most 600 lines",
        reason: "a longer one holds more than one thing, and nobody reads it to the end",
        check: Check::File(short_files),
        at_most: 0,
    },
    Rule {
        name: "every module starts with //!",
        reason: "a reader must learn what a room is for before opening its drawers",
        check: Check::File(module_docs),
        at_most: 0,
    },
    Rule {
        name: "SQL only in hearth-store",
        reason: "one place that knows the tables keeps states legal and lets the schema change",
        check: Check::File(sql_in_store),
        at_most: 0,
    },
    Rule {
        name: "axum only in doors/, http/ and web/",
        reason: "the rest of the server must be usable, and testable, without a request",
        check: Check::File(axum_in_http),
        at_most: 0,
    },
    Rule {
        name: "only the store reads text back as redacted",
        reason: "a text is redacted because a redactor made it, or the type says nothing; what the store holds went through one",
        check: Check::File(redacted_by_a_redactor),
        at_most: 0,
    },
    Rule {
        name: "hearth-core does no IO and asks no clock",
        reason: "the plan is a pure function of the world, or property tests mean nothing",
        check: Check::File(pure_core),
        at_most: 0,
    },
    Rule {
        name: "tests never sleep",
        reason: "a fixed sleep is too short on a slow machine and wasted on a fast one; wait for a predicate with a deadline",
        check: Check::File(sleepless_tests),
        at_most: 0,
    },
    Rule {
        name: "versions only in the root manifest",
        reason: "two versions of one crate come from two places that name one",
        check: Check::File(versions_in_root),
        at_most: 0,
    },
    Rule {
        name: "no path of this machine",
        reason: "it works here and nowhere else",
        check: Check::File(no_machine_paths),
        at_most: 0,
    },
    Rule {
        name: "an ignored test says what it needs",
        reason: "plain `cargo test` works anywhere because of these; `cargo xtask test` tells by reason and name which to run",
        check: Check::File(ignored_tests),
        at_most: 0,
    },
    Rule {
        name: "the server's rooms import only rooms below them",
        reason: "a room can be read, tested and changed without those above it; a circle has no first file to read",
        check: Check::All(rooms::upward),
        at_most: 0,
    },
    Rule {
        name: "rooms do not import each other in a circle",
        reason: "what is in a circle can only be understood, and moved, all at once",
        check: Check::All(rooms::circles),
        at_most: 0,
    },
    Rule {
        name: "pages, texts and comments use the field's words",
        reason: "a stranger searches for the words that Kubernetes, QEMU and git use, and finds nothing under ours",
        check: Check::File(words::plain_words),
        at_most: 0,
    },
    Rule {
        name: "no Debug in what the server says or writes",
        reason: "a renamed variant would change a reply, a row or a log line that somebody compares; give it a name of its own",
        check: Check::File(no_debug_in_texts),
        at_most: 0,
    },
    Rule {
        name: "links between pages lead somewhere",
        reason: "a reader who follows one must not end at nothing",
        check: Check::File(dead_links),
        at_most: 0,
    },
];

fn short_files(file: &Source) -> Vec<Finding> {
    let lines = file.text.lines().count();
    if file.is_rust() && lines > MAX_LINES {
        vec![finding(lines, format!("{lines} lines"))]
    } else {
        Vec::new()
    }
}

fn module_docs(file: &Source) -> Vec<Finding> {
    if !file.is_rust() || file.text.trim_start().starts_with("//!") {
        return Vec::new();
    }
    vec![finding(1, "starts without a word about what it is")]
}

/// Crates whose texts go into replies, the database and the log.
const SPEAKING_CRATES: [&str; 6] = [
    "crates/hearth/src/",
    "crates/hearth-api/src/",
    "crates/hearth-core/src/",
    "crates/hearth-guest/src/",
    "crates/hearth-server/src/",
    "crates/hearth-store/src/",
];

fn no_debug_in_texts(file: &Source) -> Vec<Finding> {
    let is_test = file.path.ends_with("/tests.rs") || file.path.ends_with("_tests.rs");
    if !file.is_rust() || !SPEAKING_CRATES.iter().any(|folder| file.path.starts_with(folder)) || is_test {
        return Vec::new();
    }
    let all = tokens(&file.text);
    let in_texts = all
        .iter()
        .filter(|token| token.kind == Kind::Text && [":?}", ":#?}"].iter().any(|form| token.text.contains(form)))
        .map(|token| finding(token.line, "formats with Debug"));
    // `?value` of a log line. Where an expression may begin, no other `?` stands.
    let in_fields = all
        .windows(2)
        .filter(|pair| matches!(pair[0].text, "(" | "," | "=") && pair[1].text == "?")
        .map(|pair| finding(pair[1].line, "logs a field with Debug"));
    in_texts.chain(in_fields).collect()
}

/// How to run a test that needs more than a checkout.
const HOW_TO_RUN: &str = " (all: cargo xtask test; alone: cargo xtask test NAME)";

/// The reason is one of a known form, and fits the name by which `cargo xtask test` tells such tests apart.
fn ignored_tests(file: &Source) -> Vec<Finding> {
    if !file.is_rust() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in file.lines() {
        let Some(reason) = line.trim().strip_prefix(concat!("#[ign", "ore")) else {
            continue;
        };
        let reason = reason.trim_start_matches(" = \"").trim_end_matches("\"]");
        let after = file.lines().skip(number).map(|(_, line)| line);
        let name = after
            .take(3)
            .find_map(|line| line.split_once("fn "))
            .map_or("", |(_, name)| name);
        let is_none = reason.starts_with("not a test: ");
        let needs = reason
            .strip_prefix("needs ")
            .and_then(|needs| needs.strip_suffix(HOW_TO_RUN));
        if !is_none && needs.is_none() {
            found.push(finding(
                number,
                format!("the reason is neither `not a test: …` nor `needs …{HOW_TO_RUN}`"),
            ));
        } else if is_none != name.starts_with(NOT_A_TEST) {
            found.push(finding(
                number,
                format!("what is not a test begins with `{NOT_A_TEST}`, and only that"),
            ));
        } else if needs.is_some_and(|needs| needs.contains("root")) != name.starts_with(AS_ROOT) {
            found.push(finding(
                number,
                format!("what needs root begins with `{AS_ROOT}`, and only that"),
            ));
        }
    }
    found
}

/// Lines of code (not comments) that hold one of these words.
fn code_with(file: &Source, words: &[String]) -> Vec<Finding> {
    file.lines()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(number, line)| {
            let word = words.iter().find(|word| line.contains(word.as_str()))?;
            Some(finding(number, format!("`{}`", word.trim_matches('"'))))
        })
        .collect()
}

fn sql_in_store(file: &Source) -> Vec<Finding> {
    if !file.is_rust() || file.path.starts_with("crates/hearth-store/") {
        return Vec::new();
    }
    let words: Vec<String> = ["SELECT", "INSERT", "UPDATE", "DELETE FROM", "CREATE TABLE"]
        .iter()
        .map(|verb| format!("\"{verb} "))
        .chain([concat!("sql", "x::").to_owned()])
        .collect();
    code_with(file, &words)
}

fn axum_in_http(file: &Source) -> Vec<Finding> {
    // Tests may run a server of another kind, such as a git host.
    let free = ["src/doors/", "src/http/", "src/web/", "tests/"].map(|folder| format!("crates/hearth-server/{folder}"));
    if !file.is_rust() || free.iter().any(|path| file.path.starts_with(path.as_str())) {
        return Vec::new();
    }
    code_with(file, &[concat!("ax", "um::").to_owned()])
}

fn redacted_by_a_redactor(file: &Source) -> Vec<Finding> {
    let home = ["crates/hearth-store/", "crates/hearth-core/src/redact.rs"];
    if !file.is_rust() || home.iter().any(|path| file.path.starts_with(path)) {
        return Vec::new();
    }
    code_with(file, &[concat!("Redacted::st", "ored").to_owned()])
}

fn pure_core(file: &Source) -> Vec<Finding> {
    if !file.path.starts_with("crates/hearth-core/src/") {
        return Vec::new();
    }
    let words = [
        "tokio::",
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "Timestamp::now",
        "Instant::now",
        "SystemTime::now",
    ];
    code_with(file, &words.map(str::to_owned))
}

fn sleepless_tests(file: &Source) -> Vec<Finding> {
    if !file.is_rust() {
        return Vec::new();
    }
    let from = if file.path.contains("/tests/") {
        0
    } else {
        // The tests of a module are at its end.
        match file.lines().find(|(_, line)| line.trim() == "#[cfg(test)]") {
            Some((number, _)) => number,
            None => return Vec::new(),
        }
    };
    let sleep = [
        concat!("thread::sl", "eep("),
        concat!("time::sl", "eep("),
        concat!("sl", "eep_ms("),
    ];
    let lines: Vec<&str> = file.text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in file.lines().filter(|(number, _)| *number > from) {
        let says = |line: &str| PAUSE_COMMENTS.iter().any(|comment| line.contains(comment));
        let allowed = says(line) || (number >= 2 && says(lines[number - 2]));
        if !allowed && sleep.iter().any(|word| line.contains(word)) {
            found.push(finding(number, "sleeps"));
        }
    }
    found
}

fn versions_in_root(file: &Source) -> Vec<Finding> {
    if !file.path.ends_with("/Cargo.toml") {
        return Vec::new();
    }
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for (number, line) in file.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            in_dependencies = line.trim_matches(['[', ']']).ends_with("dependencies");
        } else if in_dependencies && !line.is_empty() && !line.starts_with('#') && !line.contains("workspace = true") {
            found.push(finding(number, format!("`{line}` does not say `workspace = true`")));
        }
    }
    found
}

/// Found out, not written down: the name of a folder of somebody's machine has no place in this file either.
fn no_machine_paths(file: &Source) -> Vec<Finding> {
    let checkout = crate::workspace::root().to_string_lossy().into_owned();
    let home = std::env::var("HOME").unwrap_or_default();
    // `/`, `/root` and the like mean nothing of this machine alone.
    let own = |path: &String| path.matches('/').count() >= 2;
    let words: Vec<String> = [checkout, home].into_iter().filter(own).collect();
    file.lines()
        .filter_map(|(number, line)| {
            let word = words.iter().find(|word| line.contains(word.as_str()))?;
            Some(finding(number, format!("names {word}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_rule_finds_what_it_forbids() {
        let long = "x\n".repeat(MAX_LINES + 1);
        assert_eq!(short_files(&source("a.rs", &long)).len(), 1);
        assert_eq!(module_docs(&source("a.rs", "fn main() {}")).len(), 1);
        let query = concat!("let q = \"SEL", "ECT 1\";");
        assert_eq!(sql_in_store(&source("crates/hearth-server/src/x.rs", query)).len(), 1);
        assert!(sql_in_store(&source("crates/hearth-store/src/x.rs", query)).is_empty());
        let import = concat!("use ax", "um::Router;");
        assert_eq!(axum_in_http(&source("crates/hearth-server/src/x.rs", import)).len(), 1);
        assert!(axum_in_http(&source("crates/hearth-server/src/http/x.rs", import)).is_empty());
        assert!(axum_in_http(&source("crates/hearth-server/src/web/x.rs", import)).is_empty());
        assert!(axum_in_http(&source("crates/hearth-server/tests/it/x.rs", import)).is_empty());
        let claimed = concat!("let text = Redacted::st", "ored(said);");
        let found = |path| redacted_by_a_redactor(&source(path, claimed)).len();
        assert_eq!(
            (
                found("crates/hearth-server/src/x.rs"),
                found("crates/hearth-store/src/x.rs")
            ),
            (1, 0)
        );
        assert_eq!(
            pure_core(&source("crates/hearth-core/src/x.rs", "use std::fs;")).len(),
            1
        );
        assert_eq!(
            versions_in_root(&source("crates/x/Cargo.toml", "[dependencies]\na = \"1\"\n")).len(),
            1
        );
        let debug =
            "fn f() { format!(\"{kind:?}\") }\n#[cfg(test)]\nmod tests {\n    fn f() { format!(\"{kind:?}\") }\n}\n";
        assert_eq!(
            no_debug_in_texts(&source("crates/hearth-server/src/x.rs", debug)).len(),
            1
        );
        assert!(no_debug_in_texts(&source("crates/hearth-sim/src/x.rs", debug)).is_empty());
        let fields = "fn f<T: ?Sized>() -> Option<()> { debug!(?a, b = ?c, %d, \"e\"); g(h?, i?)?; None }\n";
        assert_eq!(no_debug_in_texts(&source("crates/hearth/src/x.rs", fields)).len(), 2);
        let here = format!("let x = \"{}\";", crate::workspace::root().display());
        assert_eq!(no_machine_paths(&source("a.rs", &here)).len(), 1);
    }

    #[test]
    fn only_a_polling_helper_may_pause_in_a_test() {
        let sleep = concat!("std::thread::sl", "eep(x);");
        assert_eq!(sleepless_tests(&source("crates/a/tests/it/main.rs", sleep)).len(), 1);
        assert!(
            sleepless_tests(&source(
                "crates/a/tests/it/main.rs",
                &format!("// {}\n{sleep}", PAUSE_COMMENTS[0])
            ))
            .is_empty()
        );
        assert!(sleepless_tests(&source("crates/a/src/x.rs", sleep)).is_empty());
        assert_eq!(
            sleepless_tests(&source("crates/a/src/x.rs", &format!("#[cfg(test)]\n{sleep}"))).len(),
            1
        );
    }

    #[test]
    fn ignored_test_must_say_what_it_needs_and_be_named_so() {
        let found = |reason: &str, name: &str| {
            let code = format!(
                "#[test]\n#[{} = \"{reason}\"]\nasync fn {name}() {{}}\n",
                concat!("ign", "ore")
            );
            ignored_tests(&source("crates/a/tests/it/main.rs", &code)).len()
        };
        let needs = |what: &str| format!("needs {what}{HOW_TO_RUN}");
        assert_eq!(found(&needs("a real VM"), "vm_lives"), 0);
        assert_eq!(found(&needs("a real VM and root"), "as_root_vm_lives"), 0);
        assert_eq!(found("not a test: started by another test", "not_a_test_server"), 0);
        assert_eq!(found("slow", "vm_lives"), 1);
        assert_eq!(found(&needs("root"), "vm_lives"), 1);
        assert_eq!(found(&needs("a real VM"), "as_root_vm_lives"), 1);
        assert_eq!(found(&needs("a real VM"), "not_a_test_server"), 1);
        assert_eq!(found("not a test: started by another test", "server"), 1);
        let bare = format!("#[test]\n#[{}]\nfn a() {{}}\n", concat!("ign", "ore"));
        assert_eq!(ignored_tests(&source("a.rs", &bare)).len(), 1);
    }
}
