//! The instructions of a Dockerfile, each with the line it begins in: continued lines, comments between them, flags and heredocs.
//! Written by hand: of the crates that read Dockerfiles none knows heredocs and tells lines.

use crate::Fault;

/// So many instructions are read.
const MAX_INSTRUCTIONS: usize = 1000;
/// What begins an instruction.
const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) line: usize,
    pub(crate) name: &'static str,
    /// `--name=value`, in order.
    pub(crate) flags: Vec<(String, String)>,
    /// What follows, in one row.
    pub(crate) text: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// A text that stands below its instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    pub(crate) name: String,
    /// Variables in it are not replaced.
    pub(crate) is_literal: bool,
    pub(crate) text: String,
}

impl Instruction {
    pub(crate) fn place(&self) -> String {
        format!("line {}", self.line)
    }

    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        let found = self.flags.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The list, where the text is one of JSON.
    pub(crate) fn list(&self) -> Option<Vec<String>> {
        self.text
            .starts_with('[')
            .then(|| serde_json::from_str(&self.text).ok())
            .flatten()
    }

    /// How it is shown.
    pub(crate) fn shown(&self) -> String {
        crate::shell::shown(&format!("{} {}", self.name, self.text))
    }
}

/// All instructions of a file.
pub(crate) fn instructions(file: &str, text: &str) -> Result<Vec<Instruction>, Fault> {
    let mut escape = '\\';
    let mut all = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    let mut directives = true;
    while let Some((at, line)) = lines.next() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            directives &= trimmed.starts_with('#');
            if directives && let Some(value) = directive(trimmed, "escape") {
                escape = value
                    .chars()
                    .next()
                    .filter(|c| ['\\', '`'].contains(c))
                    .unwrap_or(escape);
            }
            continue;
        }
        directives = false;
        let mut whole = trimmed.to_owned();
        while let Some(before) = whole.strip_suffix(escape) {
            let mut before = before.to_owned();
            let mut is_over = true;
            for (_, line) in lines.by_ref() {
                let next = line.trim_end();
                if next.trim_start().is_empty() || next.trim_start().starts_with('#') {
                    continue;
                }
                before.push_str(next);
                is_over = false;
                break;
            }
            whole = before;
            if is_over {
                break;
            }
        }
        let mut instruction = one(file, at + 1, &whole)?;
        if ["RUN", "COPY", "ADD"].contains(&instruction.name) && instruction.list().is_none() {
            for (name, is_literal, strips_tabs) in delimiters(&instruction.text) {
                let mut text = String::new();
                let mut is_open = true;
                for (_, line) in lines.by_ref() {
                    let line = if strips_tabs {
                        line.trim_start_matches('\t')
                    } else {
                        line
                    };
                    if line == name {
                        is_open = false;
                        break;
                    }
                    text.push_str(line);
                    text.push('\n');
                }
                if is_open {
                    return Err(Fault::new(
                        file,
                        instruction.place(),
                        format!("the text up to {name} has no end"),
                    ));
                }
                instruction.heredocs.push(Heredoc { name, is_literal, text });
            }
        }
        all.push(instruction);
        if all.len() > MAX_INSTRUCTIONS {
            return Err(Fault::new(
                file,
                format!("line {}", at + 1),
                format!("more than {MAX_INSTRUCTIONS} instructions"),
            ));
        }
    }
    Ok(all)
}

fn directive<'a>(comment: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = comment.trim_start_matches('#').split_once('=')?;
    key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
}

fn one(file: &str, line: usize, whole: &str) -> Result<Instruction, Fault> {
    let (word, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
    let name = NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(word));
    let Some(name) = name else {
        let shown: String = word.chars().take(30).collect();
        return Err(Fault::new(
            file,
            format!("line {line}"),
            format!("`{shown}` is no instruction of a Dockerfile"),
        ));
    };
    let mut rest = rest.trim_start();
    let mut flags = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
        flags.push((key.to_owned(), value.trim_matches('"').to_owned()));
        rest = after.trim_start();
    }
    if rest.is_empty() {
        return Err(Fault::new(file, format!("line {line}"), format!("{name} says nothing")));
    }
    Ok(Instruction {
        line,
        name,
        flags,
        text: rest.trim_end().to_owned(),
        heredocs: Vec::new(),
    })
}

/// The ends of the texts that follow: name, whether it was quoted, whether tabs are removed.
fn delimiters(text: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    let mut quote: Option<char> = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '<') if text[at..].starts_with("<<") && !text[at..].starts_with("<<<") => {
                let rest = &text[at + 2..];
                let (rest, strips_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
                let opens = rest.chars().next().filter(|c| ['\'', '"'].contains(c));
                let rest = rest.trim_start_matches(['\'', '"']);
                let end = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(rest.len());
                let name = &rest[..end];
                // `1 << 2` in a shell's arithmetic is none.
                if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    found.push((name.to_owned(), opens.is_some(), strips_tabs));
                }
                let past = text.len() - rest.len() + end + usize::from(opens.is_some());
                while chars.clone().next().is_some_and(|(next, _)| next < past) {
                    chars.next();
                }
            }
            (None, '<') => {
                while chars.clone().next().is_some_and(|(_, next)| next == '<') {
                    chars.next();
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_lines_comments_flags_and_heredocs() {
        let text = "# syntax=docker/dockerfile:1\nFROM debian\n\nRUN --mount=type=cache,target=/x a && \\\n  # why\n\n  b\nRUN <<EOF sh\none\ntwo\nEOF\ncopy <<-'A' <<B /to/\n\tx\n\tA\ny\nB\nRUN cat <<< x\n";
        let all = instructions("Dockerfile", text).unwrap();
        let shown: Vec<_> = all.iter().map(|one| (one.line, one.name, one.text.as_str())).collect();
        assert_eq!(
            shown,
            [
                (2, "FROM", "debian"),
                (4, "RUN", "a &&   b"),
                (8, "RUN", "<<EOF sh"),
                (12, "COPY", "<<-'A' <<B /to/"),
                (17, "RUN", "cat <<< x")
            ]
        );
        assert_eq!(all[1].flags, [("mount".to_owned(), "type=cache,target=/x".to_owned())]);
        assert_eq!(all[2].heredocs[0].text, "one\ntwo\n");
        assert_eq!(
            (all[3].heredocs[0].text.as_str(), all[3].heredocs[0].is_literal),
            ("x\n", true)
        );
        assert_eq!(all[3].heredocs[1].text, "y\n");
        assert!(all[4].heredocs.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let fault = |text| instructions("Dockerfile", text).unwrap_err().to_string();
        assert_eq!(
            fault("FROM a\n\nFORM b\n"),
            "Dockerfile, line 3: `FORM` is no instruction of a Dockerfile"
        );
        assert_eq!(
            fault("FROM a\nRUN <<EOF\nx\n"),
            "Dockerfile, line 2: the text up to EOF has no end"
        );
        assert_eq!(fault("FROM\n"), "Dockerfile, line 1: FROM says nothing");
        assert!(fault(&"FROM a\n".repeat(1001)).ends_with("more than 1000 instructions"));
        // Ends in the middle of a continued line.
        assert_eq!(instructions("Dockerfile", "RUN a \\\n").unwrap()[0].text, "a");
    }
}
