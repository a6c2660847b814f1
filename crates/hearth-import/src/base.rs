//! Which base images a VM can stand in for: those that are Debian or Ubuntu underneath, with the tool that they bring.

use crate::packages::Tool;

/// What a base image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Debian or Ubuntu, and what it brings besides.
    Debian(Option<(Tool, Option<String>)>),
    /// Something else, or not known: why it is not taken.
    Other(String),
}

/// Words in a tag that say that it is neither Debian nor Ubuntu.
const OTHERS: [&str; 5] = ["alpine", "nanoserver", "windowsservercore", "musl", "ubi"];

/// Reads an image's name.
pub(crate) fn base(image: &str) -> Base {
    let other = |why: &str| Base::Other(format!("the image {image} {why}"));
    if image == "scratch" {
        return other("is empty");
    }
    let name = image.split('@').next().unwrap_or(image);
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, ""),
    };
    if let Some(not) = OTHERS.iter().find(|not| tag.contains(*not)) {
        return other(&format!("is {not}; only Debian and Ubuntu are taken"));
    }
    let official = ["docker.io/library/", "docker.io/", "library/"];
    let path = official.iter().find_map(|host| path.strip_prefix(host)).unwrap_or(path);
    let devcontainers = [
        "mcr.microsoft.com/devcontainers/",
        "mcr.microsoft.com/vscode/devcontainers/",
    ];
    let devcontainer = devcontainers.iter().find_map(|host| path.strip_prefix(host));
    // Tags of these begin with the image's own version: `1-20-bookworm`, `dev-3.12`.
    let version = match devcontainer {
        Some(_) => match tag.splitn(3, '-').collect::<Vec<_>>()[..] {
            [own, version, ..] if own == "dev" || version.starts_with(|c: char| c.is_ascii_digit()) => version,
            [version, ..] => version,
            [] => "",
        },
        None => tag,
    };
    let with = |tool| Base::Debian(Some((tool, Some(version.to_owned()))));
    match (devcontainer, devcontainer.unwrap_or(path)) {
        (None, "debian" | "ubuntu" | "buildpack-deps") | (Some(_), "base" | "universal") => Base::Debian(None),
        (Some(_), "javascript-node" | "typescript-node") | (None, "node") => with(Tool::Node),
        (_, "python") => with(Tool::Python),
        (_, "go") | (None, "golang") => with(Tool::Go),
        (_, "rust") => with(Tool::Rust),
        (_, "ruby") => with(Tool::Ruby),
        (_, "php") => with(Tool::Php),
        (_, "java") | (None, "openjdk" | "eclipse-temurin") => with(Tool::Java),
        (None, "maven") => with(Tool::Java),
        (None, "composer") => Base::Debian(Some((Tool::Composer, None))),
        (None, "oven/bun") => with(Tool::Bun),
        (None, _) if path.starts_with("ghcr.io/astral-sh/uv") => Base::Debian(Some((Tool::Uv, None))),
        _ => other("is not known to be Debian or Ubuntu; no registry is asked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_people_name() {
        let debian = |tool, version: &str| Base::Debian(Some((tool, Some(version.to_owned()))));
        assert_eq!(base("debian:bookworm-slim"), Base::Debian(None));
        assert_eq!(base("docker.io/library/ubuntu:22.04"), Base::Debian(None));
        assert_eq!(base("node:20-slim"), debian(Tool::Node, "20-slim"));
        assert_eq!(
            base("mcr.microsoft.com/devcontainers/python:1-3.12-bullseye"),
            debian(Tool::Python, "3.12")
        );
        assert_eq!(
            base("mcr.microsoft.com/devcontainers/typescript-node:20"),
            debian(Tool::Node, "20")
        );
        assert_eq!(base("mcr.microsoft.com/devcontainers/base:ubuntu"), Base::Debian(None));
        for not in [
            "node:20-alpine",
            "scratch",
            "registry.example:5000/own",
            "fedora:40",
            "python:3.12-alpine3.19",
        ] {
            assert!(matches!(base(not), Base::Other(_)), "{not}");
        }
    }
}
