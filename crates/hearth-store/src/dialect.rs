//! What PostgreSQL and SQLite say differently, and nothing else: everything the store asks is written once, in words that both know
//! (`CASE` and not `iif`, `IS DISTINCT FROM` and not `IS NOT`, a named target of `ON CONFLICT`, `json(x) ->> 'key'`).

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// The end of a query that takes the first row nobody else is just taking. SQLite has one writer: nobody else is.
    pub(crate) fn skip_locked(self, table: &str) -> String {
        match self {
            Self::Sqlite => String::new(),
            Self::Postgres => format!("FOR NO KEY UPDATE OF {table} SKIP LOCKED"),
        }
    }

    /// The end of a query whose rows nobody else changes until the transaction ends. What refers to them may still be written.
    pub(crate) fn lock_rows(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR NO KEY UPDATE",
        }
    }

    /// The elements of a JSON list as rows with a column `value`, for FROM.
    pub(crate) fn elements(self, list: &str) -> String {
        match self {
            Self::Sqlite => format!("json_each({list}) AS element"),
            Self::Postgres => format!("json_array_elements(CAST({list} AS json)) AS element (value)"),
        }
    }

    /// Where a text begins in another one, counted from 1; 0 when it is not in it.
    pub(crate) fn position(self, whole: &str, part: &str) -> String {
        match self {
            Self::Sqlite => format!("instr({whole}, {part})"),
            Self::Postgres => format!("strpos({whole}, {part})"),
        }
    }

    /// A bound text that is compared as ids and keys are, for a query that refers to itself: PostgreSQL wants its first part to say so.
    pub(crate) fn key(self, bound: &str) -> String {
        match self {
            Self::Sqlite => bound.to_owned(),
            Self::Postgres => format!("{bound} COLLATE \"C\""),
        }
    }
}
