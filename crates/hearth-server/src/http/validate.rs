//! What fields may hold. Collects all faults, so that a client can mend them in one go.

use std::collections::BTreeSet;

use hearth_api::error::FieldError;
use hearth_api::pool::{MAX_AGE_MINUTES, PatchPool, SetupCommand, TARGET_SIZE};
use hearth_api::project::RepoInput;
use hearth_api::variables::{MAX_NAME_CHARS, MAX_VALUE_CHARS, MAX_VARIABLES, PutVariables};

use super::error::ApiError;
use crate::store::RepoSource;

/// Longest name of a project, token, command or owner, characters.
const MAX_NAME: usize = 200;
/// Longest description, characters.
const MAX_DESCRIPTION: usize = 10_000;
/// Longest set-up command, characters.
const MAX_COMMAND: usize = 1_000_000;
/// Most set-up commands of one list.
const MAX_COMMANDS: usize = 1000;
/// Most repositories of a project.
const MAX_REPOS: usize = 50;
/// Longest branch name, bytes: git's own limit is a file name's.
const MAX_BRANCH: usize = 250;
/// Longest URL, bytes.
const MAX_URL: usize = 2000;

/// Collects faults.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldError>);

impl Faults {
    /// Adds one.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError {
            path: path.into(),
            message: message.into(),
        });
    }

    /// Adds one unless this holds.
    pub fn check(&mut self, holds: bool, path: &str, message: &str) {
        if !holds {
            self.add(path, message);
        }
    }

    /// 422 if there are any.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ApiError::fields(self.0))
        }
    }

    /// A short text for people: not empty, one line.
    pub fn name(&mut self, path: &str, text: &str) {
        let length = text.chars().count();
        self.check(
            !text.trim().is_empty() && length <= MAX_NAME && !text.chars().any(char::is_control),
            path,
            &format!("must be 1 to {MAX_NAME} characters without line breaks"),
        );
    }

    /// A longer text for people.
    pub fn description(&mut self, path: &str, text: &str) {
        self.check(
            text.chars().count() <= MAX_DESCRIPTION && !text.contains('\0'),
            path,
            &format!("must be at most {MAX_DESCRIPTION} characters"),
        );
    }

    /// A branch name that git takes and that cannot be taken for an option.
    pub fn branch(&mut self, path: &str, branch: &str) {
        let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        let fine = !branch.is_empty()
            && branch.len() <= MAX_BRANCH
            && !branch.contains(forbidden)
            && !branch.starts_with(['-', '/'])
            && !branch.ends_with(['/', '.'])
            && !["..", "@{", "//"].iter().any(|bad| branch.contains(bad))
            && branch != "@"
            && branch
                .split('/')
                .all(|part| !part.starts_with('.') && !part.ends_with(".lock"));
        self.check(fine, path, "must be a branch name that git accepts");
    }

    /// A list of set-up commands.
    pub fn commands(&mut self, path: &str, commands: &[SetupCommand]) {
        self.check(
            commands.len() <= MAX_COMMANDS,
            path,
            &format!("must be at most {MAX_COMMANDS} commands"),
        );
        for (at, command) in commands.iter().enumerate() {
            self.name(&format!("{path}[{at}].name"), &command.name);
            let length = command.command.chars().count();
            self.check(
                !command.command.trim().is_empty() && length <= MAX_COMMAND && !command.command.contains('\0'),
                &format!("{path}[{at}].command"),
                &format!("must be 1 to {MAX_COMMAND} characters and not blank"),
            );
        }
    }

    /// A PATCH of a pool.
    pub fn pool(&mut self, patch: &PatchPool) {
        if let Some(size) = patch.target_size {
            self.check(TARGET_SIZE.contains(&size), "targetSize", "must be from 1 to 20");
        }
        if let Some(age) = patch.max_age_minutes {
            self.check(
                MAX_AGE_MINUTES.contains(&age),
                "maxAgeMinutes",
                "must be from 30 to 180",
            );
        }
        if let Some(Some(branch)) = &patch.branch {
            self.branch("branch", branch);
        }
        if let Some(Some(commands)) = &patch.setup_commands {
            self.commands("setupCommands", commands);
        }
    }

    /// A variable's name.
    pub fn variable_name(&mut self, path: &str, name: &str) {
        let legal = |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
        self.check(
            !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().enumerate().all(legal),
            path,
            &format!("must be 1 to {MAX_NAME_CHARS} letters, digits and `_`, not beginning with a digit"),
        );
    }

    /// A variable's value. Never quotes it.
    pub fn variable_value(&mut self, path: &str, value: &str) {
        self.check(
            value.chars().count() <= MAX_VALUE_CHARS && !value.contains('\0'),
            path,
            &format!("must be at most {MAX_VALUE_CHARS} characters and hold no NUL"),
        );
    }

    /// A PUT of variables.
    pub fn variables(&mut self, put: &PutVariables) {
        self.check(
            (1..=MAX_VARIABLES).contains(&put.variables.len()),
            "variables",
            &format!("must be 1 to {MAX_VARIABLES} variables"),
        );
        for (at, variable) in put.variables.iter().enumerate() {
            self.variable_name(&format!("variables[{at}].name"), &variable.name);
            self.variable_value(&format!("variables[{at}].value"), &variable.value);
        }
    }

    /// The repositories of a project; those without a URL come from `base`.
    pub fn repos(&mut self, path: &str, inputs: &[RepoInput], base: &str) -> Vec<RepoSource> {
        self.check(
            inputs.len() <= MAX_REPOS,
            path,
            &format!("must be at most {MAX_REPOS} repositories"),
        );
        let mut seen = BTreeSet::new();
        inputs
            .iter()
            .enumerate()
            .map(|(at, input)| {
                let name = &input.repo_full_name;
                let name_path = format!("{path}[{at}].repoFullName");
                self.check(
                    is_full_name(name),
                    &name_path,
                    "must be `org/name` of letters, digits, `.`, `_` and `-`",
                );
                self.check(seen.insert(name.clone()), &name_path, "is in the list twice");
                self.branch(&format!("{path}[{at}].branch"), &input.branch);
                let url = input
                    .url
                    .clone()
                    .unwrap_or_else(|| format!("{}/{name}.git", base.trim_end_matches('/')));
                if let Err(message) = check_url(&url) {
                    self.add(format!("{path}[{at}].url"), message);
                }
                RepoSource {
                    repo_full_name: name.clone(),
                    branch: input.branch.clone(),
                    url,
                }
            })
            .collect()
    }
}

fn is_full_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 100
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    name.split('/').count() >= 2 && name.split('/').all(part)
}

/// Only transports that fetch; git has others that run programs.
fn check_url(url: &str) -> Result<(), String> {
    if url.len() > MAX_URL || url.chars().any(char::is_control) {
        return Err(format!("must be at most {MAX_URL} characters without line breaks"));
    }
    if let Ok(parsed) = url::Url::parse(url) {
        let scheme = parsed.scheme();
        if !["https", "http", "ssh", "file"].contains(&scheme) {
            return Err("must be https://, http://, ssh://, file:// or user@host:path".to_owned());
        }
        if parsed.password().is_some() || (scheme.starts_with("http") && !parsed.username().is_empty()) {
            return Err(
                "must not hold credentials; let git's credential helper on the server's machine know them".to_owned(),
            );
        }
        if scheme != "file"
            && parsed
                .host_str()
                .is_none_or(|host| host.is_empty() || host.starts_with('-'))
        {
            return Err("must name a host".to_owned());
        }
        return Ok(());
    }
    // git's short form: user@host:path
    let short = url.split_once(':').is_some_and(|(host, path)| {
        !path.is_empty()
            && !host.is_empty()
            && !host.starts_with('-')
            && host.chars().all(|c| c.is_ascii_alphanumeric() || "@._-".contains(c))
    });
    if short {
        Ok(())
    } else {
        Err("must be https://, http://, ssh://, file:// or user@host:path".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_run_programs_or_hold_credentials_are_refused() {
        for good in [
            "https://h/o/n.git",
            "file:///srv/x",
            "ssh://git@h/o/n",
            "git@h.example:o/n.git",
            "http://127.0.0.1:80/x",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "ext::sh -c x",
            "https://user:pw@h/x",
            "https://token@h/x",
            "-oProxy=x:y",
            "",
            "ftp://h/x",
            "ssh://-o/x",
            "/tmp/x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn branches_follow_gits_rules() {
        for (branch, fine) in [
            ("main", true),
            ("feature/ä-1", true),
            ("-x", false),
            ("a..b", false),
            ("a b", false),
            ("", false),
            ("a.lock", false),
            ("x/.y", false),
            ("a@{b", false),
            ("/a", false),
            ("a/", false),
        ] {
            let mut faults = Faults::default();
            faults.branch("b", branch);
            assert_eq!(faults.finish().is_ok(), fine, "{branch}");
        }
    }
}
