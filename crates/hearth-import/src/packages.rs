//! Tools that commands take for granted, and which package each comes from: Debian's, the npm registry's or PyPI's. Nothing is downloaded
//! from anywhere else.

use crate::shell::quote;

/// Installs for every user: the VM is the project's own.
pub(crate) const PIP: &str = "python3 -m pip install --quiet --break-system-packages --root-user-action=ignore";

/// Quiet, and nothing that is only recommended.
pub(crate) fn apt(packages: &[&str]) -> String {
    format!(
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends {}",
        packages.join(" ")
    )
}

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Node,
    Python,
    Go,
    Rust,
    Ruby,
    Php,
    Java,
    Pnpm,
    Yarn,
    /// The one that calls itself `berry`, from version 2 on.
    YarnBerry,
    Bun,
    Deno,
    Uv,
    Poetry,
    Pipenv,
    Bundler,
    Composer,
    Maven,
    Gradle,
}

/// How a tool comes into a VM.
enum From {
    /// It is in the image.
    Image,
    /// Debian's packages, which have one version.
    Apt(&'static [&'static str]),
    /// A package of the npm registry.
    Npm(&'static str),
    /// A package of PyPI.
    Pip(&'static str),
}

impl Tool {
    /// By the names that files use.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "node" | "nodejs" => Self::Node,
            "python" | "python3" => Self::Python,
            "go" | "golang" => Self::Go,
            "rust" | "cargo" => Self::Rust,
            "ruby" => Self::Ruby,
            "php" => Self::Php,
            "java" => Self::Java,
            "pnpm" => Self::Pnpm,
            "yarn" => Self::Yarn,
            "bun" => Self::Bun,
            "deno" => Self::Deno,
            "uv" => Self::Uv,
            "poetry" => Self::Poetry,
            "pipenv" => Self::Pipenv,
            "bundler" => Self::Bundler,
            "composer" => Self::Composer,
            "maven" => Self::Maven,
            "gradle" => Self::Gradle,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Node => "Node.js",
            Self::Python => "Python",
            Self::Go => "Go",
            Self::Rust => "Rust",
            Self::Ruby => "Ruby",
            Self::Php => "PHP",
            Self::Java => "Java",
            Self::Pnpm => "pnpm",
            Self::Yarn | Self::YarnBerry => "Yarn",
            Self::Bun => "Bun",
            Self::Deno => "Deno",
            Self::Uv => "uv",
            Self::Poetry => "Poetry",
            Self::Pipenv => "Pipenv",
            Self::Bundler => "Bundler",
            Self::Composer => "Composer",
            Self::Maven => "Maven",
            Self::Gradle => "Gradle",
        }
    }

    fn from(self) -> From {
        match self {
            Self::Node => From::Image,
            Self::Python => From::Image,
            Self::Go => From::Apt(&["golang-go"]),
            Self::Rust => From::Apt(&["cargo", "rustc"]),
            Self::Ruby => From::Apt(&["ruby-full"]),
            Self::Php => From::Apt(&["php-cli", "php-curl", "php-mbstring", "php-xml", "php-zip"]),
            Self::Java => From::Apt(&["default-jdk-headless"]),
            Self::Pnpm => From::Npm("pnpm"),
            Self::Yarn => From::Npm("yarn"),
            Self::YarnBerry => From::Npm("@yarnpkg/cli-dist"),
            Self::Bun => From::Npm("bun"),
            Self::Deno => From::Npm("deno"),
            Self::Uv => From::Pip("uv"),
            Self::Poetry => From::Pip("poetry"),
            Self::Pipenv => From::Pip("pipenv"),
            Self::Bundler => From::Apt(&["ruby-bundler"]),
            Self::Composer => From::Apt(&["composer", "php-curl", "php-mbstring", "php-xml", "php-zip"]),
            Self::Maven => From::Apt(&["maven"]),
            Self::Gradle => From::Apt(&["gradle"]),
        }
    }

    /// What is installed through another comes after it.
    pub(crate) fn order(self) -> u8 {
        match self.from() {
            From::Image => 1,
            From::Apt(_) => 0,
            From::Npm(_) | From::Pip(_) => 2,
        }
    }
}

/// A tool in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) tool: Tool,
    /// Numbers, or a part of them; `None` when any will do.
    pub(crate) version: Option<String>,
}

impl Wanted {
    /// `version`: as files write it, like `v20`, `20.x`, `lts/*`, `>=3.11`, `^9`.
    pub(crate) fn new(tool: Tool, version: Option<&str>) -> Self {
        let version = version.and_then(numbers);
        Self { tool, version }
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.tool.name()),
            None => self.tool.name().to_owned(),
        }
    }

    /// Which package it is, as a sentence.
    pub(crate) fn how(&self) -> String {
        let shown = self.shown();
        match (self.tool.from(), &self.version, self.tool) {
            (From::Image, None, _) => format!("{shown} is in the image"),
            (From::Image, Some(_), Tool::Node) => {
                format!("{shown}: the image's where it is that, else the package `node` of the npm registry")
            }
            (From::Image, Some(_), _) => {
                format!("{shown}: the image's where it is that, else `uv python install`, which downloads from GitHub")
            }
            (From::Apt(packages), None, _) => format!("{shown}: Debian's {}", packages.join(", ")),
            (From::Apt(packages), Some(_), _) => {
                format!(
                    "{shown}: Debian's {} in the version that Debian has",
                    packages.join(", ")
                )
            }
            (From::Npm(package), ..) => format!("{shown}: the package `{package}` of the npm registry"),
            (From::Pip(package), ..) => format!("{shown}: the package `{package}` of PyPI"),
        }
    }

    /// Debian's packages, if it is made of these.
    pub(crate) fn packages(&self) -> &'static [&'static str] {
        match self.tool.from() {
            From::Apt(packages) => packages,
            _ => &[],
        }
    }

    /// What installs it; `None` when it is there, or is Debian's.
    pub(crate) fn command(&self) -> Option<String> {
        let version = self.version.as_deref();
        Some(match (self.tool.from(), version) {
            (From::Image, None) => return None,
            (From::Image, Some(version)) if self.tool == Tool::Node => {
                let has = format!("case \"$(node --version).\" in v{version}.*) ;;");
                format!("{has} *) npm install --global --no-audit --no-fund node@{version} ;; esac\nnode --version")
            }
            (From::Image, Some(version)) => {
                let has = format!("case \"$(python3 --version).\" in \"Python {version}.\"*) ;;");
                let install = format!(
                    "{PIP} uv && uv python install {version} && for name in python python3; do \
                     ln -sf \"$(uv python find {version})\" \"/usr/local/bin/$name\"; done"
                );
                format!("{has} *) {install} ;; esac\npython3 --version")
            }
            (From::Apt(_), _) => return None,
            (From::Npm(package), version) => {
                let version = version
                    .or(self.newest_that_runs())
                    .map_or_else(String::new, |version| format!("@{version}"));
                format!(
                    "npm install --global --no-audit --no-fund {}",
                    quote(&format!("{package}{version}"))
                )
            }
            (From::Pip(package), version) => {
                let version = version.map_or_else(String::new, |version| format!("=={version}.*"));
                format!("{PIP} {}", quote(&format!("{package}{version}")))
            }
        })
    }

    /// Newer ones need a newer Node.js than Debian's.
    fn newest_that_runs(&self) -> Option<&'static str> {
        match self.tool {
            Tool::Pnpm => Some("9"),
            Tool::Yarn => Some("1"),
            Tool::YarnBerry => Some("4"),
            _ => None,
        }
    }
}

/// The numbers of a version: `v20.x` is `20`, `lts/*` is any, `>=3.11,<4` is `3.11`.
fn numbers(version: &str) -> Option<String> {
    let begins = version.trim().find(|c: char| c.is_ascii_digit())?;
    let before = &version.trim()[..begins];
    // `java-17`, `lts/hydrogen2` and the like: a name is no version.
    if before.chars().any(char::is_alphabetic) && before != "v" && !before.ends_with('-') && !before.ends_with('@') {
        return None;
    }
    let numbers: Vec<&str> = version.trim()[begins..]
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()
        .unwrap_or_default()
        .split('.')
        .filter(|part| !part.is_empty())
        .take(3)
        .collect();
    (!numbers.is_empty()).then(|| numbers.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_files_write_them() {
        for (written, is) in [
            ("20", Some("20")),
            ("v20.11.1", Some("20.11.1")),
            ("20.x", Some("20")),
            ("lts/*", None),
            ("latest", None),
            (">=3.11,<4", Some("3.11")),
            ("^9", Some("9")),
            ("3.12-bookworm", Some("3.12")),
            ("temurin-17.0.2", Some("17.0.2")),
            ("9.1.0+sha512.abc", Some("9.1.0")),
            ("", None),
        ] {
            assert_eq!(numbers(written).as_deref(), is, "{written}");
        }
    }

    #[test]
    fn pip_takes_a_part_of_a_version() {
        let command = |tool, version| Wanted::new(tool, version).command();
        assert!(command(Tool::Uv, Some("0.5")).unwrap().ends_with(" 'uv==0.5.*'"));
        assert!(command(Tool::Pnpm, Some("8.15.4")).unwrap().ends_with(" pnpm@8.15.4"));
        assert_eq!(command(Tool::Node, None), None);
    }
}
