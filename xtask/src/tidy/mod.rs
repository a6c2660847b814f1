//! `cargo xtask tidy`: the house rules as code. Each rule has a reason; a rule without one does not belong here.

mod code;
mod links;
mod rooms;
mod rules;
mod words;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Folders that hold nothing of ours.
const SKIPPED: [&str; 4] = ["target", ".git", ".hearth", "node_modules"];

/// One text file of the checkout.
#[derive(Debug, Clone)]
struct Source {
    /// From the checkout's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// A place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    line: usize,
    what: String,
}

fn finding(line: usize, what: impl Into<String>) -> Finding {
    Finding {
        line,
        what: what.into(),
    }
}

/// The same, in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: String,
    finding: Finding,
}

/// How a rule looks.
enum Check {
    /// At each file by itself.
    File(fn(&Source) -> Vec<Finding>),
    /// At all of them together.
    All(fn(&[Source]) -> Vec<Place>),
}

/// A rule, and why there is one.
struct Rule {
    name: &'static str,
    reason: &'static str,
    check: Check,
    /// How many places may still break it: what is left of the time before the rule. It only goes down.
    at_most: usize,
}

impl Rule {
    fn places(&self, files: &[Source]) -> Vec<Place> {
        match self.check {
            Check::All(check) => check(files),
            Check::File(check) => {
                let of_file = |file: &Source| {
                    let path = file.path.clone();
                    let place = move |finding| Place {
                        path: path.clone(),
                        finding,
                    };
                    check(file).into_iter().map(place).collect::<Vec<_>>()
                };
                files.iter().flat_map(of_file).collect()
            }
        }
    }
}

pub(crate) fn run() -> Result<()> {
    let root = workspace::root();
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    let mut broken = 0;
    for rule in rules::ALL {
        let found = rule.places(&files);
        if found.len() <= rule.at_most {
            if found.len() < rule.at_most {
                println!(
                    "{}: {} places are left, lower `at_most` to that",
                    rule.name,
                    found.len()
                );
            }
            continue;
        }
        broken += found.len();
        eprintln!("{} ({})", rule.name, rule.reason);
        for Place { path, finding } in &found {
            eprintln!("  {path}:{}: {}", finding.line, finding.what);
        }
        if rule.at_most > 0 {
            eprintln!(
                "  {} places, at most {} are left from before",
                found.len(),
                rule.at_most
            );
        }
    }
    if broken > 0 {
        bail!("{broken} places break a house rule");
    }
    println!("tidy: {} files keep {} rules", files.len(), rules::ALL.len());
    Ok(())
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<Source>) -> Result<()> {
    let read = std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut entries: Vec<PathBuf> = read.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(root, &path, files)?;
            }
        } else if meta.is_file() {
            // What is no text is no matter of these rules.
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(Source { path, text });
        }
    }
    Ok(())
}
