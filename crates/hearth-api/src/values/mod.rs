//! The texts that requests hold, each a type of its own that parses: a value of the type is known to keep its bounds. Bound, pattern,
//! message and example stand here once; the published document, the readers of requests and the command line's options are made
//! from them. Stored rows are read through the same types, so a rule may be loosened, but be tightened only with a migration.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::LazyLock;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

pub use rule::{Invalid, Rule, at_least, at_most};

pub(crate) mod rule;

/// Declares one kind of text.
macro_rules! value {
    ($(#[doc = $doc:literal])+ $name:ident {
        chars: $min:literal..=$max:literal,
        pattern: $pattern:literal,
        message: $message:literal,
        example: $example:literal,
    }) => {
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// One that keeps the rule.
            pub const EXAMPLE: &str = $example;
            /// What such a text must be.
            pub const RULE: Rule = Rule {
                min_chars: $min,
                max_chars: $max,
                pattern: $pattern,
                message: $message,
                example: Some(Self::EXAMPLE),
            };

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                static REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| $name::RULE.compile());
                Self::RULE.check(REGEX.as_ref(), &text)?;
                Ok(Self(text))
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Invalid;
            fn try_from(text: &str) -> Result<Self, Invalid> {
                Self::try_from(text.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<String> for $name {
            fn eq(&self, other: &String) -> bool {
                self.0 == *other
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                Self::RULE.schema(&[$($doc),+])
            }
        }

        impl ToSchema for $name {}
    };
}

/// How a text is shown to people. Not for a secret, which is why there is no `Display` for every kind.
macro_rules! shown {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )+};
}

value! {
    /// A short text for people: one line, not blank.
    Name {
        chars: 1..=200,
        pattern: r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$",
        message: "must be one line and not blank",
        example: "web",
    }
}

value! {
    /// A longer text for people.
    Description {
        chars: 0..=10_000,
        pattern: r"^[^\x00]*$",
        message: "must hold no NUL",
        example: "The shop's web application",
    }
}

value! {
    /// A text for a shell: not blank.
    CommandText {
        chars: 1..=1_000_000,
        pattern: r"^[^\x00]*[^\x00-\x20][^\x00]*$",
        message: "must not be blank and hold no NUL",
        example: "npm ci && npm run build",
    }
}

value! {
    /// A branch name that git accepts and that cannot be taken for an option.
    Branch {
        chars: 1..=250,
        pattern: r"^(?!@$)(?![-/.])(?!.*(?:\.\.|@\{|//|/\.|\.lock/))(?!.*(?:\.lock|[/.])$)[^\x00-\x20\x7f~^:?*\[\\]+$",
        message: "must be a branch name that git accepts",
        example: "main",
    }
}

value! {
    /// `org/name`; more parts between are allowed, as some git hosts have them.
    RepoFullName {
        chars: 3..=300,
        pattern: r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})+$",
        message: "must be `org/name` of letters, digits, `.`, `_` and `-`",
        example: "acme/app",
    }
}

value! {
    /// Where a repository is fetched from: `https://`, `http://`, `ssh://`, `file:///` or `user@host:path`. No credentials: the
    /// project's own (`hearth credential set`) are their place.
    RepoUrl {
        chars: 5..=2000,
        pattern: r"^(https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\x00-\x20\x7f]*)?|ssh://([A-Za-z0-9._][A-Za-z0-9._-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[^\x00-\x20\x7f]+|file:///[^\x00-\x1f\x7f]+|(?!(?:file|git|https?|ssh):)([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:/?[A-Za-z0-9~._][^\x00-\x20\x7f]*)$",
        message: "must be https://, http://, ssh://, file:/// or user@host:path, and must not hold credentials: those of the project \
         (`hearth credential set`) are their place",
        example: "https://git.example.org/acme/app.git",
    }
}

value! {
    /// A person's name as git writes it into a commit. Git takes punctuation off both ends; something must be left.
    GitName {
        chars: 1..=200,
        pattern: r#"^[^\x00-\x1f\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x1f\x7f<>]*$"#,
        message: "must be a name in one line, without `<` and `>`",
        example: "Shop Agent",
    }
}

value! {
    /// An e-mail address as git writes it into a commit.
    Email {
        chars: 1..=200,
        pattern: r#"^[^\x00-\x20\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x20\x7f<>]*$"#,
        message: "must be an e-mail address: no blanks, no `<` and no `>`",
        example: "agent@example.org",
    }
}

value! {
    /// The name of a shell variable.
    VariableName {
        chars: 1..=191,
        pattern: "^[A-Za-z_][A-Za-z0-9_]*$",
        message: "must be letters, digits and `_`, not beginning with a digit",
        example: "API_KEY",
    }
}

value! {
    /// The value of a variable. It goes in and never comes back.
    VariableValue {
        chars: 0..=100_000,
        pattern: r"^[^\x00]*$",
        message: "must hold no NUL",
        example: "s3cret",
    }
}

value! {
    /// A git server: its name or address, and its port where that is not the protocol's usual one.
    CredentialHost {
        chars: 1..=260,
        pattern: r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$",
        message: "must be the name of a git server in small letters, as in github.com or git.example.org:8443",
        example: "github.com",
    }
}

value! {
    /// The user name that goes with a token.
    CredentialUsername {
        chars: 1..=200,
        pattern: r"^[^\x00-\x20\x7f:]+$",
        message: "must be a user name without blanks and `:`",
        example: "x-access-token",
    }
}

value! {
    /// A token or a private key. It goes in and never comes back.
    CredentialSecret {
        chars: 1..=32_000,
        pattern: r"^[^\x00]*[^\x00-\x20][^\x00]*$",
        message: "must not be blank and hold no NUL",
        example: "ghp_s3cret",
    }
}

value! {
    /// The name of a checkpoint.
    CheckpointName {
        chars: 1..=63,
        pattern: "^[A-Za-z0-9][A-Za-z0-9._-]*$",
        message: "must be letters, digits, `.`, `_` and `-`, and begin with a letter or a digit",
        example: "before-upgrade",
    }
}

value! {
    /// An idempotency key.
    TaskId {
        chars: 1..=200,
        pattern: r"^[^\x00-\x1f\x7f]+$",
        message: "must hold no control characters",
        example: "task-4711",
    }
}

value! {
    /// One word of a command line: no NUL, which no process can be given.
    Word {
        chars: 0..=100_000,
        pattern: r"^[^\x00]*$",
        message: "must hold no NUL",
        example: "cargo",
    }
}

value! {
    /// An absolute or relative path in the VM.
    GuestPath {
        chars: 1..=4096,
        pattern: r"^[^\x00]+$",
        message: "must hold no NUL",
        example: "/home/app",
    }
}

value! {
    /// Permission bits of a file, octal.
    FileMode {
        chars: 1..=5,
        pattern: "^0?[0-7]{1,4}$",
        message: "must be octal permission bits, as in 0644",
        example: "0644",
    }
}

value! {
    /// What a terminal is, as programs read it in `TERM`.
    TerminalKind {
        chars: 1..=64,
        pattern: "^[A-Za-z0-9+._-]+$",
        message: "must be the name of a terminal: letters, digits, `+`, `.`, `_` and `-`",
        example: "xterm-256color",
    }
}

value! {
    /// A name for a session in a VM. It is not taken for an id (`s-…`), a process id or the newest session (`last`).
    SessionTag {
        chars: 1..=100,
        pattern: r"^(?!s-)(?!last$)(?![0-9]+$)[^\x00-\x1f\x7f]+$",
        message: "must hold no control characters, not begin with `s-`, not be a number and not be `last`",
        example: "build",
    }
}

value! {
    /// A signal: its name, with or without `SIG`, or its number.
    SignalName {
        chars: 1..=10,
        pattern: "^((SIG)?[A-Z][A-Z0-9]{1,6}|[1-9][0-9]?)$",
        message: "must be the name of a signal, as in TERM, or its number",
        example: "TERM",
    }
}

value! {
    /// A host name, or `*.` and a name for all names below that.
    EgressHost {
        chars: 1..=253,
        pattern: r"^(?![0-9.]+$)(\*\.)?[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$",
        message: "must be a host name in small letters, as in registry.npmjs.org, or *.npmjs.org for all names below npmjs.org",
        example: "*.npmjs.org",
    }
}

value! {
    /// An IPv4 address or network. VMs have no IPv6.
    EgressNetwork {
        chars: 1..=43,
        pattern: r"^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(/(3[0-2]|[12]?[0-9]))?$",
        message: "must be an IPv4 address or network, as in 203.0.113.7 or 203.0.113.0/24 (VMs have no IPv6)",
        example: "203.0.113.0/24",
    }
}

value! {
    /// A time that comes again, in the five fields of cron: minute, hour, day of the month, month, day of the week (0 is Sunday).
    CronText {
        chars: 9..=200,
        pattern: r"^(\*(/[1-9][0-9]?)?|[0-5]?[0-9]-[0-5]?[0-9](/[1-9][0-9]?)?|[0-5]?[0-9](,[0-5]?[0-9])*) (\*(/[1-9][0-9]?)?|(1?[0-9]|2[0-3])-(1?[0-9]|2[0-3])(/[1-9][0-9]?)?|(1?[0-9]|2[0-3])(,(1?[0-9]|2[0-3]))*) (\*(/[1-9][0-9]?)?|([1-9]|[12][0-9]|3[01])-([1-9]|[12][0-9]|3[01])(/[1-9][0-9]?)?|([1-9]|[12][0-9]|3[01])(,([1-9]|[12][0-9]|3[01]))*) (\*(/[1-9][0-9]?)?|([1-9]|1[0-2])-([1-9]|1[0-2])(/[1-9][0-9]?)?|([1-9]|1[0-2])(,([1-9]|1[0-2]))*) (\*(/[1-9][0-9]?)?|[0-6]-[0-6](/[1-9][0-9]?)?|[0-6](,[0-6])*)$",
        message: "must be the five fields of cron with numbers: minute, hour, day of the month, month, day of the week, as in 0 8 * * 1-5",
        example: "0 8 * * 1-5",
    }
}

value! {
    /// The name of a time zone in the IANA database.
    TimeZoneName {
        chars: 1..=64,
        pattern: "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$",
        message: "must be the name of a time zone, as in Europe/Berlin or UTC",
        example: "Europe/Berlin",
    }
}

value! {
    /// `nextCursor` of the page before. The pattern is that of exactly the texts that decode: a version and then the characters of an
    /// id, in hexadecimal.
    Cursor {
        chars: 0..=1000,
        pattern: "^31(2d|3[0-9]|5f|6[1-9a-f]|7[0-9a]){1,64}$",
        message: "must be a `nextCursor` that this server gave out",
        example: "317072",
    }
}

shown!(
    Name,
    Description,
    CommandText,
    Branch,
    RepoFullName,
    RepoUrl,
    GitName,
    Email,
    VariableName,
    CredentialHost,
    CredentialUsername,
    CheckpointName,
    TaskId,
    Word,
    GuestPath,
    FileMode,
    TerminalKind,
    SessionTag,
    SignalName,
    EgressHost,
    EgressNetwork,
    CronText,
    TimeZoneName,
    Cursor
);

impl fmt::Debug for CredentialSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialSecret")
    }
}

impl fmt::Debug for VariableValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VariableValue")
    }
}

/// Every rule that the public document shows, for the message of a refusal.
pub const RULES: [Rule; 27] = [
    Name::RULE,
    Description::RULE,
    CommandText::RULE,
    Branch::RULE,
    RepoFullName::RULE,
    RepoUrl::RULE,
    GitName::RULE,
    Email::RULE,
    VariableName::RULE,
    VariableValue::RULE,
    FileMode::RULE,
    TaskId::RULE,
    Word::RULE,
    GuestPath::RULE,
    TerminalKind::RULE,
    SessionTag::RULE,
    SignalName::RULE,
    Cursor::RULE,
    CredentialHost::RULE,
    CredentialUsername::RULE,
    CredentialSecret::RULE,
    CheckpointName::RULE,
    EgressHost::RULE,
    EgressNetwork::RULE,
    CronText::RULE,
    TimeZoneName::RULE,
    crate::ids::RULE,
];

/// The message for a text that breaks this pattern.
#[must_use]
pub fn pattern_message(pattern: &str) -> Option<&'static str> {
    let rule = RULES.iter().find(|rule| rule.pattern == pattern);
    rule.map(|rule| rule.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles_has_one_message_and_takes_its_example() {
        for rule in RULES {
            let regex = rule.compile();
            assert!(regex.is_some(), "{}", rule.pattern);
            if let Some(example) = rule.example {
                assert_eq!(rule.check(regex.as_ref(), example), Ok(()), "{example}");
            }
            assert_eq!(pattern_message(rule.pattern), Some(rule.message));
        }
    }

    #[test]
    fn text_parses_within_its_bounds_and_refusal_quotes_nothing() {
        let refused = |text: &str| Name::try_from(text).unwrap_err().to_string();
        assert_eq!(refused(""), "must not be empty");
        assert_eq!(refused("geheim\n"), "must be one line and not blank");
        assert_eq!(refused(&"ä".repeat(201)), "must be at most 200 characters");
        assert_eq!(Name::try_from("ä".repeat(200)).unwrap().chars().count(), 200);
        assert_eq!(
            serde_json::from_str::<Branch>("\"-geheim\"").unwrap_err().to_string(),
            "must be a branch name that git accepts"
        );
        let value = VariableValue::try_from("geheim").unwrap();
        assert_eq!(format!("{value:?}"), "VariableValue");
        assert_eq!(serde_json::to_string(&value).unwrap(), "\"geheim\"");
    }
}
