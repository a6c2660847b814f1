//! Versions of tools: `mise.toml`, `.tool-versions`, and the files that single tools have.

use serde_json::Value;

use crate::draft::Draft;
use crate::files::Reader;
use crate::node::Node;
use crate::packages::{PIP, Tool};
use crate::shell::quote;
use crate::{Fault, formats};

const MISE: [&str; 5] = [
    "mise.toml",
    ".mise.toml",
    "mise/config.toml",
    ".mise/config.toml",
    ".config/mise.toml",
];
const ASDF: &str = ".tool-versions";
/// Files that hold the version of one tool.
const OWN: [(&str, Tool); 5] = [
    (".nvmrc", Tool::Node),
    (".node-version", Tool::Node),
    (".python-version", Tool::Python),
    (".ruby-version", Tool::Ruby),
    (".go-version", Tool::Go),
];

/// All of them, the most particular first.
pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
    if let Some(file) = reader.first(&MISE)? {
        mise(reader, draft, &file)?;
    }
    if reader.has(ASDF)? {
        asdf(reader, draft)?;
    }
    for (file, tool) in OWN {
        if let Some(text) = reader.text(file)? {
            let version = text
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty() && !line.starts_with('#'));
            draft.need(file, "version", tool, version);
        }
    }
    Ok(())
}

/// What is said of a tool's second version.
const ONE_VERSION: &str = "a VM gets one version of a tool, the first that is named";

fn mise(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<(), Fault> {
    let Some(text) = reader.text(file)? else { return Ok(()) };
    let value = formats::toml(file, &text)?;
    let root = Node::root(file, &value);
    draft.file(file);
    if let Some(tools) = root.get("tools")? {
        for (name, node) in tools.entries()? {
            let version = match node.value {
                Value::Array(_) => {
                    let mut versions = node.items()?.into_iter();
                    let first = versions.next().map(|first| first.version()).transpose()?;
                    for other in versions {
                        draft.left_out(file, &other.place, ONE_VERSION);
                    }
                    first
                }
                Value::Object(_) => node.get("version")?.map(|node| node.version()).transpose()?,
                _ => Some(node.version()?),
            };
            one(draft, file, &node.place, name, version.as_deref());
        }
    }
    if let Some(all) = root.get("env")? {
        for (name, node) in all.entries()? {
            match node.value {
                Value::String(_) | Value::Number(_) if !name.starts_with('_') && !node.scalar()?.contains("{{") => {
                    draft.variable(file, &node.place, name, &node.scalar()?);
                }
                _ => draft.left_out(file, &node.place, "mise itself works it out"),
            }
        }
    }
    if let Some(tasks) = root.get("tasks")? {
        for (name, node) in tasks.entries()? {
            draft.left_out(
                file,
                &node.place,
                format!("it runs when somebody asks for it: `mise run {name}`"),
            );
        }
    }
    for (key, _) in root.entries()? {
        if !["tools", "env", "tasks", "min_version", "settings"].contains(&key) {
            draft.left_out(file, key, "the key is not known");
        }
    }
    Ok(())
}

fn asdf(reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let Some(text) = reader.text(ASDF)? else { return Ok(()) };
    draft.file(ASDF);
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        let place = format!("line {}", at + 1);
        match words.next() {
            Some(version) => {
                one(draft, ASDF, &place, name, Some(version));
                for other in words {
                    draft.left_out(ASDF, &place, format!("{other}: {ONE_VERSION}"));
                }
            }
            None => return Err(Fault::new(ASDF, place, "names no version")),
        }
    }
    Ok(())
}

fn one(draft: &mut Draft, file: &str, place: &str, name: &str, version: Option<&str>) {
    let own = |version: Option<&str>, before: &str| {
        let is_exact = version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        version
            .filter(|_| is_exact)
            .map_or_else(String::new, |version| format!("{before}{version}"))
    };
    match name.split_once(':') {
        Some(("npm", package)) => {
            let package = quote(&format!("{package}{}", own(version, "@")));
            draft.taken(file, place, format!("the package {package} of the npm registry"));
            draft.run_as_root(
                file,
                place,
                format!("npm install --global --no-audit --no-fund {package}"),
            );
        }
        Some(("pipx" | "uv", package)) => {
            let package = quote(&format!("{package}{}", own(version, "==")));
            draft.taken(file, place, format!("the package {package} of PyPI"));
            draft.run_as_root(file, place, format!("{PIP} {package}"));
        }
        Some(("cargo", package)) => {
            draft.need(file, place, Tool::Rust, None);
            let package = quote(&format!("{package}{}", own(version, "@")));
            draft.taken(file, place, format!("the package {package} of crates.io"));
            draft.run_as_root(
                file,
                place,
                format!("cargo install --locked --root /usr/local {package}"),
            );
        }
        Some(("core", name)) => one(draft, file, place, name, version),
        Some(_) => draft.left_out(file, place, "it is downloaded from a place that is no package registry"),
        None => match Tool::named(name) {
            Some(tool) => draft.need(file, place, tool, version),
            None => draft.left_out(
                file,
                place,
                format!("no package is known for {name}; install it in a step"),
            ),
        },
    }
}

/// The version of a tool that a file names.
pub(crate) fn version_in(reader: &mut Reader<'_>, path: &str, tool: Tool) -> Result<Option<String>, Fault> {
    let Some(text) = reader.text(path)? else {
        return Ok(None);
    };
    if path.ends_with("package.json") {
        let value = formats::jsonc(path, &text)?;
        let root = Node::root(path, &value);
        return match root.get("engines")? {
            Some(engines) => engines.scalar_of("node"),
            None => Ok(None),
        };
    }
    if path.ends_with(".tool-versions") {
        let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
        return Ok(lines
            .find(|(name, _)| Tool::named(name) == Some(tool))
            .map(|(_, version)| version.trim().to_owned()));
    }
    if path.ends_with("go.mod") {
        return Ok(text
            .lines()
            .find_map(|line| line.strip_prefix("go "))
            .map(|version| version.trim().to_owned()));
    }
    Ok(text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned))
}
