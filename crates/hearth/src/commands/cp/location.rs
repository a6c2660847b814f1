//! What a person means by one side of a copy.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::failure::Failure;

/// One side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// Standard input or output.
    Stream,
    /// On this computer.
    Here(PathBuf),
    /// In a VM.
    There { vm: String, path: String },
}

impl Location {
    /// `-`, `INSTANCE:PATH`, or a path: as `scp` tells them apart.
    pub(super) fn parse(text: &OsStr) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Failure::usage("an empty text names no file"));
        }
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let vm = colon.filter(|colon| *colon > 0 && !bytes[..*colon].contains(&b'/'));
        let Some(colon) = vm else {
            return Ok(Self::Here(PathBuf::from(text)));
        };
        let text = text.to_str().ok_or_else(|| {
            Failure::usage("a path in a VM must be UTF-8 text").hint("copy the folder that holds the file")
        })?;
        let (vm, path) = (&text[..colon], &text[colon + 1..]);
        Ok(Self::There {
            vm: vm.to_owned(),
            path: if path.is_empty() { "." } else { path }.to_owned(),
        })
    }

    /// Which VM.
    pub(super) fn vm(&self) -> Option<&str> {
        match self {
            Self::There { vm, .. } => Some(vm),
            _ => None,
        }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Stream => "-".to_owned(),
            Self::Here(path) => path.display().to_string(),
            Self::There { path, .. } => path.clone(),
        }
    }
}

/// Whether what the folder holds is meant, and not the folder itself.
pub(super) fn means_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.") || bytes.ends_with(b"/./")
}

/// The name that a copy of this gets in another folder; none where the path ends with no name of its own.
pub(super) fn own_name(path: &Path) -> Option<OsString> {
    match path.components().next_back() {
        Some(Component::Normal(name)) if name != "~" => Some(name.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_vm_unless_a_slash_comes_first() {
        let there = |vm: &str, path: &str| Location::There {
            vm: vm.into(),
            path: path.into(),
        };
        for (text, location) in [
            ("-", Location::Stream),
            ("last:/etc/x", there("last", "/etc/x")),
            ("fix-17:app:x", there("fix-17", "app:x")),
            ("last:", there("last", ".")),
            ("last:-", there("last", "-")),
            ("./a:b", Location::Here("./a:b".into())),
            ("/a:b", Location::Here("/a:b".into())),
            (":a", Location::Here(":a".into())),
            ("./-", Location::Here("./-".into())),
        ] {
            assert_eq!(Location::parse(OsStr::new(text)).unwrap(), location, "{text}");
        }
        assert!(Location::parse(OsStr::new("")).is_err());
        assert!(Location::parse(OsStr::from_bytes(b"last:\xff")).is_err());
    }

    #[test]
    fn a_copy_is_called_as_the_path_ends() {
        let name = |path: &str| own_name(Path::new(path)).map(|name| name.into_string().unwrap());
        assert_eq!(name("/home/app/").as_deref(), Some("app"));
        assert_eq!(name("app").as_deref(), Some("app"));
        for path in ["/", ".", "..", "app/..", "~"] {
            assert_eq!(name(path), None, "{path}");
        }
        for (path, content) in [("a/.", true), (".", true), ("a/./", true), ("a.", false), ("a/", false)] {
            assert_eq!(means_content(Path::new(path)), content, "{path}");
        }
    }
}
