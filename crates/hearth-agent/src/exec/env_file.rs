//! The variables of a shell file, as a shell understands it. Read once and kept until the file changes: a command then costs
//! no extra shell, and one that runs as another user gets them without being able to read the file. The form that Hearth
//! itself writes is read here; a file that was edited is left to root's bash, which cannot give back more
//! than Linux lets a process have.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;

/// A file that only assigns variables is read in no time; one that does not end is a mistake.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Sources `$0` with everything exported and prints the whole environment. Its syntax is checked first, because a shell
/// continues after a broken file with half of its variables.
const SOURCE_AND_PRINT: &str = r#"bash -n "$0" || exit; set -a; . "$0" >/dev/null; exec env -0"#;
/// What bash itself sets.
const BASH_OWN: [&str; 4] = ["_", "SHLVL", "PWD", "OLDPWD"];

type Variables = Arc<Vec<(String, String)>>;

/// Tells one content of a file from another: inode, size, time of change in nanoseconds.
type Version = (u64, u64, i64, i64);

/// The files read so far.
#[derive(Debug, Default)]
pub(super) struct EnvFiles(Mutex<HashMap<String, (Version, Variables)>>);

impl EnvFiles {
    /// The variables of a file; none when it does not exist. The error is a sentence for a person.
    pub(super) async fn read(&self, file: &str) -> Result<Variables, String> {
        if !file.starts_with('/') || file.contains('\0') {
            return Err(format!("the variables' file {file:?} is not an absolute path"));
        }
        let version = match fs::metadata(file) {
            Ok(found) => (found.ino(), found.size(), found.ctime(), found.ctime_nsec()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(format!("the variables' file {file} cannot be read: {error}")),
        };
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(file).cloned();
        if let Some((_, variables)) = kept.filter(|(kept, _)| *kept == version) {
            return Ok(variables);
        }
        let own = fs::read_to_string(file).ok().and_then(|text| parse_own_form(&text));
        let variables = Arc::new(match own {
            Some(variables) => variables,
            None => source(file).await?,
        });
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(file.to_owned(), (version, Arc::clone(&variables)));
        Ok(variables)
    }
}

/// Lines `NAME='value'` with every single quote of the value as `'\''`, and nothing else. `None` for any other text.
fn parse_own_form(mut text: &str) -> Option<Vec<(String, String)>> {
    let mut variables = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("='")?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        if !is_name {
            return None;
        }
        let mut value = String::new();
        text = rest;
        loop {
            let (chunk, rest) = text.split_once('\'')?;
            value.push_str(chunk);
            if let Some(rest) = rest.strip_prefix(r"\''") {
                value.push('\'');
                text = rest;
            } else {
                text = rest.strip_prefix('\n')?;
                break;
            }
        }
        variables.push((name.to_owned(), value));
    }
    Some(variables)
}

async fn source(file: &str) -> Result<Vec<(String, String)>, String> {
    let cannot = |why: &str| format!("the variables' file {file} cannot be used: {why}");
    let mut bash = Command::new("bash");
    bash.args(["-c", SOURCE_AND_PRINT, file])
        .env_clear()
        .env("PATH", super::plan::DEFAULT_PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(READ_TIMEOUT, bash.output())
        .await
        .map_err(|_| cannot("it does not end"))?
        .map_err(|error| cannot(&format!("bash cannot be run: {error}")))?;
    if !output.status.success() {
        return Err(cannot("bash finds an error in it"));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| cannot("a value is not UTF-8"))?;
    let is_own = |(name, value): &(&str, &str)| {
        BASH_OWN.contains(name) || (*name == "PATH" && *value == super::plan::DEFAULT_PATH)
    };
    Ok(text
        .split('\0')
        .filter_map(|entry| entry.split_once('='))
        .filter(|entry| !is_own(entry))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hearths_own_form_is_read_here() {
        let own = |text| {
            parse_own_form(text).map(|all| all.into_iter().map(|(name, value)| format!("{name}|{value}")).collect())
        };
        let some = |all: &[&str]| Some(all.iter().map(|&text| text.to_owned()).collect::<Vec<String>>());
        assert_eq!(own(""), some(&[]));
        assert_eq!(own("A=''\nB_1='x y\n# z'\n"), some(&["A|", "B_1|x y\n# z"]));
        assert_eq!(own("A='it'\\''s'\n"), some(&["A|it's"]));
        for other in [
            "A=b\n",
            "A='b'",
            "A='b' C='d'\n",
            "# no\nA='b'\n",
            "1A='b'\n",
            "A='b'c\n",
            "export A='b'\n",
            "='b'\n",
        ] {
            assert_eq!(own(other), None, "{other:?}");
        }
    }
}
