//! Links between the Markdown files: a file that is linked exists, and so does the heading after `#`.

use std::path::{Component, Path, PathBuf};

use super::{Finding, Source, finding};
use crate::workspace;

/// Links that lead nowhere.
pub(super) fn dead_links(file: &Source) -> Vec<Finding> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    prose(&file.text)
        .flat_map(|(line, text)| targets(text).map(move |target| (line, target)))
        .filter(|(_, target)| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|(line, target)| {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let text = if path.is_empty() {
                file.text.clone()
            } else {
                let linked = workspace::root().join(inside(&folder.join(path))?);
                if !linked.exists() {
                    return Some(finding(line, format!("`{path}` does not exist")));
                }
                std::fs::read_to_string(linked).unwrap_or_default()
            };
            let missing = !heading.is_empty() && !headings(&text).any(|found| found == heading);
            missing.then(|| finding(line, format!("`{target}`: there is no such heading")))
        })
        .collect()
}

/// `docs/../README.md` as `README.md`; nothing for what leads out of the checkout.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => plain.pop().then_some(())?,
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    Some(plain)
}

/// Lines outside of fenced code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((index + 1, line))
    })
}

/// What `[text](target)` links to. Text in backquotes is no link.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let outside = line.split('`').step_by(2);
    outside.flat_map(|text| {
        let after = text.split("](").skip(1);
        after.filter_map(|rest| rest.split([')', ' ']).next())
    })
}

/// Headings as links name them: lower case, hyphens for blanks, nothing else that is no letter or digit.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let titles = prose(text).filter_map(|(_, line)| line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' '));
    titles.map(|title| {
        let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
        let title = title.trim().to_lowercase();
        title
            .chars()
            .filter(|c| kept(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let source = Source {
            path: "docs/page.md".to_owned(),
            text: text.to_owned(),
        };
        dead_links(&source).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        assert_eq!(found("[a](nowhere.md)"), ["`nowhere.md` does not exist"]);
        assert_eq!(
            found("[a](../README.md) [b](../no.md#x)"),
            ["`../no.md` does not exist"]
        );
        assert_eq!(
            found("[a](../README.md#no-such-heading)"),
            ["`../README.md#no-such-heading`: there is no such heading"]
        );
        assert_eq!(found("# One\n[a](#two)"), ["`#two`: there is no such heading"]);
    }

    #[test]
    fn links_that_lead_somewhere_and_code_are_left_alone() {
        assert_eq!(found("# Here, `too`: it's\n[a](#here-too-its)"), [""; 0]);
        assert_eq!(found("[a](../README.md) [b](https://example.org/x.md)"), [""; 0]);
        assert_eq!(found("```\n[a](nowhere.md)\n```\n`[a](nowhere.md)`"), [""; 0]);
    }
}
