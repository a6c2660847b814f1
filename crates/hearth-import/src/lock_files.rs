//! The fallback: what lock files in the repository's root say is installed with their own package manager.

use crate::draft::Draft;
use crate::files::Reader;
use crate::node::Node;
use crate::packages::Tool;
use crate::{Fault, formats, tools};

/// A lock file: the tools that it takes for granted, and what installs what it names.
struct Lock {
    file: &'static str,
    tools: &'static [Tool],
    install: &'static str,
    /// Only the first of a kind is taken.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    JavaScript,
    Python,
    Own,
}

const fn lock(file: &'static str, kind: Kind, tools: &'static [Tool], install: &'static str) -> Lock {
    Lock {
        file,
        tools,
        install,
        kind,
    }
}

const LOCKS: [Lock; 15] = [
    lock(
        "pnpm-lock.yaml",
        Kind::JavaScript,
        &[Tool::Pnpm],
        "pnpm install --frozen-lockfile",
    ),
    lock(
        "yarn.lock",
        Kind::JavaScript,
        &[Tool::Yarn],
        "yarn install --frozen-lockfile",
    ),
    lock(
        "bun.lock",
        Kind::JavaScript,
        &[Tool::Bun],
        "bun install --frozen-lockfile",
    ),
    lock(
        "bun.lockb",
        Kind::JavaScript,
        &[Tool::Bun],
        "bun install --frozen-lockfile",
    ),
    lock(
        "package-lock.json",
        Kind::JavaScript,
        &[],
        "npm ci --no-audit --no-fund",
    ),
    lock(
        "npm-shrinkwrap.json",
        Kind::JavaScript,
        &[],
        "npm ci --no-audit --no-fund",
    ),
    lock("uv.lock", Kind::Python, &[Tool::Uv], "uv sync --frozen"),
    lock(
        "poetry.lock",
        Kind::Python,
        &[Tool::Poetry],
        "POETRY_VIRTUALENVS_IN_PROJECT=true poetry install --no-interaction",
    ),
    lock(
        "Pipfile.lock",
        Kind::Python,
        &[Tool::Pipenv],
        "PIPENV_VENV_IN_PROJECT=1 pipenv sync --dev",
    ),
    lock(
        "requirements.txt",
        Kind::Python,
        &[],
        "[ -x .venv/bin/python ] || python3 -m venv .venv\n.venv/bin/python -m pip install --quiet -r requirements.txt",
    ),
    lock("Cargo.lock", Kind::Own, &[Tool::Rust], "cargo fetch --locked"),
    lock("go.sum", Kind::Own, &[Tool::Go], "go mod download"),
    lock("go.mod", Kind::Own, &[Tool::Go], "go mod download"),
    lock(
        "Gemfile.lock",
        Kind::Own,
        &[Tool::Ruby, Tool::Bundler],
        "bundle config set --local path vendor/bundle\nbundle install",
    ),
    lock(
        "composer.lock",
        Kind::Own,
        &[Tool::Composer],
        "composer install --no-interaction",
    ),
];

impl Lock {
    /// The file that says what is wanted, without which its manager installs nothing.
    fn manifest(&self) -> &'static str {
        match (self.kind, self.file) {
            (Kind::JavaScript, _) => "package.json",
            (_, "uv.lock" | "poetry.lock") => "pyproject.toml",
            (_, "Pipfile.lock") => "Pipfile",
            (_, "Cargo.lock") => "Cargo.toml",
            (_, "go.sum") => "go.mod",
            (_, "Gemfile.lock") => "Gemfile",
            (_, "composer.lock") => "composer.json",
            (_, own) => own,
        }
    }
}

pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
    tools::take(reader, draft)?;
    let names = reader.root()?;
    let is_there = |file: &str| names.iter().any(|name| name == file);
    let (there, alone): (Vec<&Lock>, Vec<&Lock>) = LOCKS
        .iter()
        .filter(|lock| is_there(lock.file))
        .partition(|lock| is_there(lock.manifest()));
    for lock in alone {
        let why = format!("{}, which it belongs to, is not there", lock.manifest());
        draft.left_out(lock.file, "the file", why);
    }
    if there.is_empty() {
        return Ok(());
    }
    let manager = manager(reader, draft, there.iter().any(|lock| lock.kind == Kind::JavaScript))?;
    let is_berry = names.iter().any(|name| name == ".yarnrc.yml");
    let mut taken: Vec<&Lock> = Vec::new();
    for lock in &there {
        let of_manager = |lock: &Lock| {
            manager
                .as_ref()
                .is_none_or(|(name, _)| lock.install.starts_with(name.as_str()))
        };
        let other_is_meant = lock.kind == Kind::JavaScript
            && !of_manager(lock)
            && there.iter().any(|other| other.kind == lock.kind && of_manager(other));
        let before = taken
            .iter()
            .find(|before| before.install == lock.install || (before.kind == lock.kind && lock.kind != Kind::Own));
        if other_is_meant {
            draft.left_out(lock.file, "the file", "package.json names another package manager");
            continue;
        }
        if let Some(before) = before {
            if lock.file != "go.mod" {
                draft.left_out(lock.file, "the file", format!("{} is taken in its place", before.file));
            }
            continue;
        }
        taken.push(lock);
        let mut install = lock.install;
        for tool in lock.tools {
            let version = manager
                .as_ref()
                .map(|(_, version)| version.as_str())
                .filter(|_| lock.kind == Kind::JavaScript);
            let (mut tool, mut version) = (*tool, version.map(str::to_owned));
            if tool == Tool::Yarn && is_berry {
                (tool, install) = (Tool::YarnBerry, "yarn install --immutable");
            }
            if tool == Tool::Go {
                version = tools::version_in(reader, "go.mod", tool)?;
            }
            draft.need(lock.file, "package manager", tool, version.as_deref());
        }
        draft.run(lock.file, "install", install);
        draft.update(install);
    }
    Ok(())
}

/// The package manager that `package.json` names, and its version; the version of Node.js is needed on the way.
fn manager(reader: &mut Reader<'_>, draft: &mut Draft, is_javascript: bool) -> Result<Option<(String, String)>, Fault> {
    const FILE: &str = "package.json";
    if !is_javascript {
        return Ok(None);
    }
    let Some(text) = reader.text(FILE)? else {
        return Ok(None);
    };
    let value = formats::jsonc(FILE, &text)?;
    let root = Node::root(FILE, &value);
    root.object()?;
    for (key, within) in [("volta", "node"), ("engines", "node")] {
        if let Some(node) = root.get(key)?
            && let Some(version) = node.scalar_of(within)?
        {
            // A range that begins low is met by the image's.
            let is_exact = version
                .trim_start_matches('v')
                .starts_with(|c: char| c.is_ascii_digit());
            if is_exact {
                draft.need(FILE, &format!("{key}.{within}"), Tool::Node, Some(&version));
                break;
            }
        }
    }
    let Some(named) = root.text_of("packageManager")? else {
        return Ok(None);
    };
    let (name, version) = named.split_once('@').unwrap_or((named, ""));
    Ok(Some((name.to_owned(), version.to_owned())))
}
