//! The project and the storage pool: what must be there before anything can be made, found or made once.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::Inner;
use super::api::part;
use crate::DriverError;

/// A storage pool as Incus tells it.
#[derive(Debug, Clone, Deserialize)]
struct Listed {
    name: String,
    driver: String,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    status: String,
}

/// How copies are made in a storage pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copies {
    /// Of a disk that is written to meanwhile they are of one moment.
    pub(super) atomic: bool,
    /// They share what is the same, and take no time.
    pub(super) cheap: bool,
    /// Every member reaches them.
    pub(super) shared: bool,
    /// In words.
    pub(super) how: &'static str,
}

/// The storage pool that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) copies: Copies,
}

/// How a storage driver copies.
fn copies(driver: &str, config: &BTreeMap<String, String>) -> Copies {
    let (atomic, cheap, shared, how) = match driver {
        "btrfs" => (
            true,
            true,
            false,
            "snapshots of subvolumes: no time, shared until written",
        ),
        "zfs" => (true, true, false, "clones of snapshots: no time, shared until written"),
        "lvm" if config.get("lvm.use_thinpool").is_none_or(|thin| thin != "false") => {
            (true, true, false, "thin snapshots: no time, shared until written")
        }
        "ceph" => (
            true,
            true,
            true,
            "clones of RBD images: no time, shared until written, on every member",
        ),
        "lvmcluster" => (true, false, true, "full copies of volumes that every member reaches"),
        "lvm" => (true, false, false, "full copies of volumes"),
        _ => (false, false, false, "full copies, file by file"),
    };
    Copies {
        atomic,
        cheap,
        shared,
        how,
    }
}

/// Chooses one of the pools.
fn choose(pools: Vec<Listed>, wanted: Option<&str>) -> Result<Pool, DriverError> {
    let names = |pools: &[Listed]| {
        let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        names.join(", ")
    };
    let found = match wanted {
        Some(name) => pools.iter().find(|pool| pool.name == name),
        None => match &pools[..] {
            [only] => Some(only),
            many => many.iter().find(|pool| pool.name == "default"),
        },
    };
    let Some(pool) = found else {
        return Err(DriverError::permanent(match (wanted, pools.is_empty()) {
            (_, true) => "Incus has no storage pool: make one, like `incus storage create default btrfs`".to_owned(),
            (Some(name), _) => format!("Incus has no storage pool {name}; there are {}", names(&pools)),
            (None, _) => format!(
                "Incus has several storage pools ({}): name one with --incus-pool",
                names(&pools)
            ),
        }));
    };
    if !pool.status.is_empty() && pool.status != "Created" {
        return Err(DriverError::retry(format!(
            "the storage pool {} of Incus is not in order ({})",
            pool.name,
            pool.status.to_lowercase()
        )));
    }
    Ok(Pool {
        name: pool.name.clone(),
        driver: pool.driver.clone(),
        copies: copies(&pool.driver, &pool.config),
    })
}

impl Inner {
    /// The storage pool, once the project is there.
    pub(super) async fn pool(&self) -> Result<&Pool, DriverError> {
        self.pool
            .get_or_try_init(|| async {
                self.make_project().await?;
                let pool = self.find_pool().await?;
                self.sweep().await;
                Ok(pool)
            })
            .await
    }

    /// The same without making anything.
    pub(super) async fn find_pool(&self) -> Result<Pool, DriverError> {
        let listed = self.api.get("/1.0/storage-pools?recursion=1").await;
        let listed = listed.map_err(|error| error.into_driver("Incus' storage pools could not be listed"))?;
        choose(listed, self.options.settings.pool.as_deref())
    }

    async fn make_project(&self) -> Result<(), DriverError> {
        let name = &self.project;
        let there = self
            .api
            .get::<serde_json::Value>(&format!("/1.0/projects/{}", part(name)))
            .await;
        match there {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into_driver(format!("Incus' project {name} could not be read"))),
        }
        let body = json!({
            "name": name,
            "description": format!("VMs of the Hearth installation {}", self.options.installation),
            "config": { "features.images": "true", "features.profiles": "true", "user.hearth.installation": self.options.installation },
        });
        match self.api.run(Method::POST, "/1.0/projects", Some(&body)).await {
            Ok(_) => Ok(()),
            // Another server of this installation was quicker; so Incus says it.
            Err(error)
                if ["already exists", "UNIQUE constraint"]
                    .iter()
                    .any(|word| error.message().contains(word)) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into_driver(format!("Incus' project {name} could not be made"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, driver: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            driver: driver.to_owned(),
            config: BTreeMap::new(),
            status: "Created".to_owned(),
        }
    }

    #[test]
    fn the_only_pool_or_the_one_called_default_is_used() {
        assert_eq!(choose(vec![pool("data", "btrfs")], None).unwrap().name, "data");
        let two = || vec![pool("data", "btrfs"), pool("default", "dir")];
        assert_eq!(choose(two(), None).unwrap().name, "default");
        assert_eq!(choose(two(), Some("data")).unwrap().name, "data");
        for (pools, wanted) in [
            (Vec::new(), None),
            (two(), Some("other")),
            (vec![pool("a", "dir"), pool("b", "dir")], None),
        ] {
            assert!(matches!(choose(pools, wanted), Err(DriverError::Permanent { .. })));
        }
    }

    #[test]
    fn only_some_pools_copy_at_one_moment() {
        let none = BTreeMap::new();
        assert!(copies("btrfs", &none).atomic && copies("zfs", &none).cheap && copies("ceph", &none).shared);
        assert!(!copies("dir", &none).atomic && !copies("anything", &none).cheap);
        let thick = BTreeMap::from([("lvm.use_thinpool".to_owned(), "false".to_owned())]);
        assert!(copies("lvm", &none).cheap && !copies("lvm", &thick).cheap);
    }
}
