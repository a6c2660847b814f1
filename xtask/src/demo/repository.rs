//! The git repository of the demo: a small real one made here, or one that the person names.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::DemoArgs;
use crate::process;

/// What stands in the demo's own repository. An npm project with one dependency: installing it proves that the network works,
/// building it proves that the processor does.
const FILES: [(&str, &str); 5] = [
    (
        "README.md",
        "# demo-app\n\nA small project that `cargo xtask demo` made.\n",
    ),
    (
        "package.json",
        r#"{
  "name": "demo-app",
  "version": "1.0.0",
  "private": true,
  "scripts": { "build": "node build.js" },
  "dependencies": { "ms": "2.1.3" }
}
"#,
    ),
    (
        "build.js",
        r#"const fs = require("node:fs");
const ms = require("ms");
fs.mkdirSync("dist", { recursive: true });
const text = `built in a warm VM on ${new Date().toISOString()}, good for ${ms(ms("1h"), { long: true })}`;
fs.writeFileSync("dist/hello.txt", text + "\n");
console.log(text);
"#,
    ),
    (
        ".capy/settings.json",
        "{\n  \"hooks\": { \"setup\": [\"npm install --no-audit --no-fund\"] }\n}\n",
    ),
    (".gitignore", "node_modules\ndist\n"),
];
/// Name of the demo's own repository.
const FULL_NAME: &str = "local/demo-app";
/// Its branch.
const BRANCH: &str = "main";
/// A package that the image does not have.
const INSTALL: &str = "install a package: apt-get -q update && apt-get -q -y --no-install-recommends install sqlite3 && sqlite3 --version";

/// What the demo's project is made of.
pub(super) struct Repository {
    /// `org/name`; `None` when Hearth shall take it from the URL.
    full_name: Option<&'static str>,
    branch: String,
    url: String,
    /// Set-up commands of the pool, as `name: command`.
    pub(super) commands: Vec<String>,
    /// A command that shows, in a claimed VM, that all is there.
    pub(super) proof: String,
}

impl Repository {
    /// Where it is.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// For `--repo`.
    pub(super) fn argument(&self) -> String {
        match self.full_name {
            Some(name) => format!("{name}@{}={}", self.branch, self.url),
            None => format!("{}#{}", self.url, self.branch),
        }
    }

    /// Whether this project (as JSON) is for this repository and branch.
    pub(super) fn is_in(&self, project: &str) -> bool {
        let project: serde_json::Value = serde_json::from_str(project).unwrap_or_default();
        let repo = &project["repos"][0];
        let name = repo["repoFullName"].as_str().unwrap_or_default();
        let same_name = match self.full_name {
            Some(own) => own == name,
            None => self.url.trim_end_matches(".git").trim_end_matches('/').ends_with(name),
        };
        same_name && repo["branch"] == self.branch.as_str()
    }
}

/// Makes the demo's own repository (once), or looks at the person's.
pub(super) fn prepare(args: &DemoArgs, folder: &Path) -> Result<Repository> {
    match &args.repo {
        Some(url) => {
            let url = absolute(url);
            let branch = args
                .branch
                .clone()
                .or_else(|| default_branch(&url))
                .unwrap_or_else(|| BRANCH.to_owned());
            Ok(Repository {
                full_name: None,
                branch,
                url,
                commands: vec![
                    INSTALL.to_owned(),
                    "look around: for d in /home/*/; do git -C \"$d\" log -1 --oneline && ls \"$d\"; done".to_owned(),
                ],
                proof: "sqlite3 --version; for d in /home/*/; do echo \"$d\"; git -C \"$d\" log -1 --oneline; done"
                    .to_owned(),
            })
        }
        None => {
            make(folder)?;
            Ok(Repository {
                full_name: Some(FULL_NAME),
                branch: BRANCH.to_owned(),
                url: format!("file://{}", folder.display()),
                commands: vec![
                    INSTALL.to_owned(),
                    "build: cd /home/demo-app && npm run build".to_owned(),
                ],
                proof: "cat /home/demo-app/dist/hello.txt && sqlite3 --version && uname -srm".to_owned(),
            })
        }
    }
}

/// A folder may be named by its path; Hearth wants a URL.
fn absolute(url: &str) -> String {
    match fs::canonicalize(url) {
        Ok(path) if path.is_dir() => format!("file://{}", path.display()),
        _ => url.to_owned(),
    }
}

/// The branch that the repository's HEAD names.
fn default_branch(url: &str) -> Option<String> {
    // Without a terminal git must not stop and ask for a password.
    let mut command = Command::new("git");
    command
        .args(["ls-remote", "--symref", "--", url, "HEAD"])
        .env("GIT_TERMINAL_PROMPT", "0");
    let answer = process::output_of(&mut command)?;
    let line = answer.lines().find_map(|line| line.strip_prefix("ref: refs/heads/"))?;
    line.split_whitespace().next().map(str::to_owned)
}

fn make(folder: &Path) -> Result<()> {
    if folder.join(".git").exists() {
        return Ok(());
    }
    for (name, text) in FILES {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let git = |args: &[&str]| process::run(Command::new("git").arg("-C").arg(folder).args(args));
    git(&["init", "--quiet", "--initial-branch", BRANCH])?;
    git(&["add", "."])?;
    git(&[
        "-c",
        "user.name=Hearth demo",
        "-c",
        "user.email=demo@localhost",
        "commit",
        "--quiet",
        "-m",
        "A small project",
    ])
}
