//! A PostgreSQL that does not answer: told from every other error, because it is nobody's fault here and passes.

use std::io::{Error as IoError, ErrorKind};

/// What PostgreSQL says when it ends, begins, has no connection left, or let a transaction wait for others in vain: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
const CODES: [&str; 7] = ["57P01", "57P02", "57P03", "57P05", "53300", "55P03", "40P01"];
/// The class of codes of connections that broke.
const CONNECTION: &str = "08";

/// The error that says why PostgreSQL did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Away(String);

/// Whether a connection could not be had, or broke.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| CODES.contains(&code.as_ref()) || code.starts_with(CONNECTION)),
        _ => false,
    }
}

/// Gives such an error of PostgreSQL a kind that SQLite's errors never have.
pub(crate) fn named<T>(done: sqlx::Result<T>) -> sqlx::Result<T> {
    done.map_err(|error| match error {
        error if is_away(&error) => {
            let why = match &error {
                sqlx::Error::PoolTimedOut => "no connection came about in time".to_owned(),
                other => other.to_string(),
            };
            sqlx::Error::Io(IoError::new(ErrorKind::NotConnected, Away(why)))
        }
        error => error,
    })
}

/// Whether an error was named here.
pub(crate) fn is_named(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Away>()))
}
