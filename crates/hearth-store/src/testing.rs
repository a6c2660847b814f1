//! The store's tests run on both databases: what they open, and how one test becomes two.

use std::sync::Arc;

use tempfile::TempDir;

use super::Store;
use super::postgres::PostgresUrl;
use super::seal::tests::NoVariables;

/// Which database a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// A database of a test's own, which any number of stores can be opened on.
pub(crate) struct Database {
    folder: TempDir,
    url: Option<PostgresUrl>,
}

impl Database {
    pub(crate) fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match kind {
            Kind::Sqlite => None,
            Kind::Postgres => Some(hearth_test_postgres::shared().database().parse().unwrap()),
        };
        Self { folder, url }
    }

    pub(crate) fn url(&self) -> &PostgresUrl {
        self.url.as_ref().unwrap()
    }

    pub(crate) async fn try_open(&self) -> Result<Store, super::StoreError> {
        match &self.url {
            None => Store::open(&self.folder.path().join("hearth.db"), Arc::new(NoVariables), None).await,
            Some(url) => Store::connect(url, Arc::new(NoVariables), None).await,
        }
    }

    pub(crate) async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }
}

/// Makes two tests of each of these functions, which get the [`Kind`]: one for each database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::testing::Kind::Sqlite).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            #[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
            async fn $name() {
                super::$name($crate::testing::Kind::Postgres).await;
            })+
        }
    };
}
pub(crate) use on_both;
