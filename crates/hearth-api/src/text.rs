//! The texts that requests hold, each with its bounds. These types are never made: they give a plain `String` field its
//! schema, so that the published document, the server's checks and the messages of a refusal say the same thing.

use utoipa::ToSchema;

/// A short text for people: one line, not blank.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 200,
    pattern = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$", examples("web"))]
pub struct Name(pub String);

/// A longer text for people.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, max_length = 10_000, pattern = r"^[^\x00]*$", examples("The shop's web application"))]
pub struct Description(pub String);

/// A text for a shell: not blank.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 1_000_000,
    pattern = r"^[^\x00]*[^\x00-\x20][^\x00]*$", examples("npm ci && npm run build"))]
pub struct CommandText(pub String);

/// A branch name that git accepts and that cannot be taken for an option.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 250,
    pattern = r"^(?!@$)(?![-/.])(?!.*(?:\.\.|@\{|//|/\.|\.lock/))(?!.*(?:\.lock|[/.])$)[^\x00-\x20\x7f~^:?*\[\\]+$",
    examples("main"))]
pub struct Branch(pub String);

/// `org/name`; more parts between are allowed, as some forges have them.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 3, max_length = 300,
    pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})+$", examples("acme/app"))]
pub struct RepoFullName(pub String);

/// Where a repository is fetched from: `https://`, `http://`, `ssh://`, `file:///` or `user@host:path`. No credentials: git's
/// own credential helper on the server's machine is their place.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 5, max_length = 2000,
    pattern = r"^(https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\x00-\x20\x7f]*)?|ssh://([A-Za-z0-9._][A-Za-z0-9._-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[^\x00-\x20\x7f]+|file:///[^\x00-\x1f\x7f]+|([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:/?[A-Za-z0-9~._][^\x00-\x20\x7f]*)$",
    examples("https://git.example.org/acme/app.git"))]
pub struct RepoUrl(pub String);

/// Somebody's name as git writes it into a commit. Git takes punctuation off both ends; something must be left.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 200,
    pattern = r#"^[^\x00-\x1f\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x1f\x7f<>]*$"#, examples("Shop Agent"))]
pub struct GitName(pub String);

/// An e-mail address as git writes it into a commit.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 200,
    pattern = r#"^[^\x00-\x20\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x20\x7f<>]*$"#, examples("agent@example.org"))]
pub struct Email(pub String);

/// The name of a shell variable.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 191, pattern = "^[A-Za-z_][A-Za-z0-9_]*$",
    examples("API_KEY"))]
pub struct VariableName(pub String);

/// The value of a variable. It goes in and never comes back.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, max_length = 100_000, pattern = r"^[^\x00]*$", examples("s3cret"))]
pub struct VariableValue(pub String);

/// An idempotency key.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f]+$",
    examples("task-4711"))]
pub struct TaskId(pub String);

/// One word of a command line: no NUL, which no process can be given.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, max_length = 100_000, pattern = r"^[^\x00]*$", examples("cargo"))]
pub struct Word(pub String);

/// An absolute or relative path in the VM.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$", examples("/home/app"))]
pub struct GuestPath(pub String);

/// Each pattern above and what it means, for the message of a refusal.
pub const PATTERN_MEANINGS: [(&str, &str); 13] = [
    (
        r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$",
        "must be one line and not blank",
    ),
    (r"^[^\x00]*$", "must hold no NUL"),
    (r"^[^\x00]+$", "must hold no NUL"),
    (r"^[^\x00]*[^\x00-\x20][^\x00]*$", "must not be blank and hold no NUL"),
    (
        r"^(?!@$)(?![-/.])(?!.*(?:\.\.|@\{|//|/\.|\.lock/))(?!.*(?:\.lock|[/.])$)[^\x00-\x20\x7f~^:?*\[\\]+$",
        "must be a branch name that git accepts",
    ),
    (
        r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})+$",
        "must be `org/name` of letters, digits, `.`, `_` and `-`",
    ),
    (
        r"^(https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\x00-\x20\x7f]*)?|ssh://([A-Za-z0-9._][A-Za-z0-9._-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[^\x00-\x20\x7f]+|file:///[^\x00-\x1f\x7f]+|([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:/?[A-Za-z0-9~._][^\x00-\x20\x7f]*)$",
        "must be https://, http://, ssh://, file:/// or user@host:path, and must not hold credentials: git's credential \
         helper on the server's machine is their place",
    ),
    (
        "^[A-Za-z_][A-Za-z0-9_]*$",
        "must be letters, digits and `_`, not beginning with a digit",
    ),
    (r"^[^\x00-\x1f\x7f]+$", "must hold no control characters"),
    (
        r#"^[^\x00-\x1f\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x1f\x7f<>]*$"#,
        "must be a name in one line, without `<` and `>`",
    ),
    (
        r#"^[^\x00-\x20\x7f<>]*[^\x00-\x20\x7f<>.,:;"\\'][^\x00-\x20\x7f<>]*$"#,
        "must be an e-mail address: no blanks, no `<` and no `>`",
    ),
    (
        "^31(2d|3[0-9]|5f|6[1-9a-f]|7[0-9a]){1,64}$",
        "must be a `nextCursor` that this server gave out",
    ),
    ("^[a-z0-9_-]+$", "must be an id: characters of a-z, 0-9, `-` and `_`"),
];
