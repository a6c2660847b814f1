//! The servers that share a store in PostgreSQL, and where each project's pool is at home: one server at a time makes, hands over and
//! removes its VMs. Who is alive is said by the database's clock alone, so clocks that differ make no difference. A store in SQLite has one
//! server, which is everything's home, and nothing here has rows.

use std::collections::{HashMap, HashSet};

use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::dialect::Dialect;
use super::events::Change;
use super::moves::{delete_rows, end_claim};
use super::{RunOn as _, Store, StoreError, db, millis, parse, timestamp};

/// The database's own time, milliseconds.
const NOW: &str = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";

/// A server that begins to work with a store.
#[derive(Debug, Clone, Copy)]
pub struct NewServer<'a> {
    /// Host and data folder, for people. Two servers of one place are one after the other.
    pub place: &'a str,
    /// Where the others reach it.
    pub url: Option<&'a str>,
    /// Of the program.
    pub version: &'a str,
    /// Names the process.
    pub session: &'a str,
    /// What its VMs may have together, MiB.
    pub memory_mib: u64,
    /// It gets what was there before servers had names.
    pub adopts: bool,
}

/// How a server began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// It works from now on, as so many did before it with its data folder.
    Begun(i64),
    /// A server with the same id is alive somewhere else.
    Elsewhere(String),
}

/// A server of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    /// Of its data folder.
    pub id: String,
    /// Host and data folder, for people.
    pub place: String,
    /// Where the others reach it.
    pub url: Option<String>,
    /// Of its program.
    pub version: String,
    /// Counts up with every start.
    pub generation: i64,
    /// What its VMs may have together, MiB.
    pub memory_mib: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// It said so within its time.
    pub alive: bool,
    /// When its time ends, or ended.
    pub alive_until: Timestamp,
    /// Pools that are at home there.
    pub pools: u64,
    /// VMs that it runs.
    pub vms: u64,
}

/// The servers, and where every project is at home.
#[derive(Debug, Clone, Default)]
pub struct Homes {
    pub servers: Vec<ServerRow>,
    pub of: HashMap<ProjectId, String>,
    /// Projects that have no home, or the one that they have is silent.
    pub lost: Vec<(ProjectId, Option<String>)>,
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: String,
    place: String,
    url: Option<String>,
    version: String,
    generation: i64,
    memory_mib: i64,
    started_at: i64,
    alive: bool,
    alive_until: i64,
    pools: i64,
    vms: i64,
}

impl TryFrom<Raw> for ServerRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        Ok(Self {
            id: raw.id,
            place: raw.place,
            url: raw.url,
            version: raw.version,
            generation: raw.generation,
            memory_mib: u64::try_from(raw.memory_mib).unwrap_or_default(),
            started_at: timestamp(raw.started_at)?,
            alive: raw.alive,
            alive_until: timestamp(raw.alive_until)?,
            pools: u64::try_from(raw.pools).unwrap_or_default(),
            vms: u64::try_from(raw.vms).unwrap_or_default(),
        })
    }
}

/// What is `''` became what it is before servers had names, and is the first one's.
const ADOPT: [&str; 4] = [
    "UPDATE instance SET server = $1 WHERE server = ''",
    "UPDATE checkpoint SET server = $1 WHERE server = ''",
    "UPDATE named_checkpoint SET server = $1 WHERE server = ''",
    "UPDATE stopped_vm SET server = $1 WHERE server = ''",
];

/// What is left of a server that is gone for good.
const FORGET: [&str; 6] = [
    "DELETE FROM instance WHERE server = $1",
    "DELETE FROM checkpoint WHERE server = $1",
    "DELETE FROM named_checkpoint WHERE server = $1",
    "DELETE FROM stopped_vm WHERE server = $1",
    "DELETE FROM home WHERE server = $1",
    "DELETE FROM server WHERE id = $1",
];

fn length(length: SignedDuration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Whether several servers may share this store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.dialect() == Dialect::Postgres
    }

    /// Whether there are VMs or checkpoints of the time before servers had names.
    pub async fn has_unnamed(&self) -> Result<bool, StoreError> {
        const UNNAMED: &str = "SELECT EXISTS (SELECT 1 FROM instance WHERE server = '')
            OR EXISTS (SELECT 1 FROM checkpoint WHERE server = '')";
        Ok(db::query_scalar(UNNAMED).fetch_one(&self.read).await?)
    }

    /// This server begins, and is alive for so long.
    pub async fn register_server(
        &self,
        new: NewServer<'_>,
        lives: SignedDuration,
        now: Timestamp,
    ) -> Result<Registered, StoreError> {
        let mut tx = self.write.begin().await?;
        let begun: Option<i64> = db::query_scalar(sqlx::AssertSqlSafe(format!(
            "INSERT INTO server (id, place, url, version, session, generation, memory_mib, started_at, alive_until)
             VALUES ($1, $2, $3, $4, $5, 1, $6, $7, {NOW} + $8)
             ON CONFLICT (id) DO UPDATE
             SET place = excluded.place, url = excluded.url, version = excluded.version, session = excluded.session,
                 generation = server.generation + 1, memory_mib = excluded.memory_mib, started_at = excluded.started_at,
                 alive_until = excluded.alive_until
             WHERE server.place = excluded.place OR server.alive_until <= {NOW}
             RETURNING generation"
        )))
        .bind(self.server())
        .bind(new.place)
        .bind(new.url)
        .bind(new.version)
        .bind(new.session)
        .bind(i64::try_from(new.memory_mib).unwrap_or(i64::MAX))
        .bind(millis(now))
        .bind(length(lives))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(generation) = begun else {
            let place = db::query_scalar("SELECT place FROM server WHERE id = $1")
                .bind(self.server())
                .fetch_one(&mut *tx)
                .await?;
            return Ok(Registered::Elsewhere(place));
        };
        if new.adopts {
            for statement in ADOPT {
                db::query(statement).bind(self.server()).execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        Ok(Registered::Begun(generation))
    }

    /// This process is alive for so long from now on. False when another one has its place.
    pub async fn keep_alive(&self, session: &str, lives: SignedDuration) -> Result<bool, StoreError> {
        let done = db::query(sqlx::AssertSqlSafe(format!(
            "UPDATE server SET alive_until = {NOW} + $3 WHERE id = $1 AND session = $2"
        )))
        .bind(self.server())
        .bind(session)
        .bind(length(lives))
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// This server is gone for good, with its VMs and checkpoints: their rows go, claims of its VMs end, and its pools get another home.
    pub async fn forget_server(&self, now: Timestamp) -> Result<(), StoreError> {
        const WHY: &str = "its server was removed";
        if !self.is_shared() {
            return Ok(());
        }
        let mut tx = self.write.begin().await?;
        let ids: Vec<String> = db::query_scalar("SELECT id FROM instance WHERE server = $1")
            .bind(self.server())
            .fetch_all(&mut *tx)
            .await?;
        delete_rows(&mut tx, ids.clone(), WHY, now).await?;
        for id in ids {
            let id: InstanceId = parse("instance.id", &id)?;
            end_claim(&mut tx, &id, WHY, now).await?;
        }
        for statement in FORGET {
            db::query(statement).bind(self.server()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// All servers, and where projects are at home.
    pub async fn homes(&self) -> Result<Homes, StoreError> {
        if !self.is_shared() {
            return Ok(Homes::default());
        }
        let raw: Vec<Raw> = db::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT id, place, url, version, generation, memory_mib, started_at, alive_until > {NOW} AS alive, alive_until,
                    (SELECT count(*) FROM home WHERE home.server = server.id) AS pools,
                    (SELECT count(*) FROM instance WHERE instance.server = server.id AND state NOT IN ('archived')) AS vms
             FROM server ORDER BY id"
        )))
        .fetch_all(&self.read)
        .await?;
        let servers: Vec<ServerRow> = raw.into_iter().map(ServerRow::try_from).collect::<Result<_, _>>()?;
        let rows: Vec<(String, Option<String>)> =
            db::query_as("SELECT project.id, home.server FROM project LEFT JOIN home ON home.project_id = project.id")
                .fetch_all(&self.read)
                .await?;
        let alive: HashSet<&str> = servers
            .iter()
            .filter(|one| one.alive)
            .map(|one| one.id.as_str())
            .collect();
        let (mut of, mut lost) = (HashMap::new(), Vec::new());
        for (project, server) in rows {
            let project: ProjectId = parse("project.id", &project)?;
            match server {
                Some(server) if alive.contains(server.as_str()) => drop(of.insert(project, server)),
                silent => lost.push((project, silent)),
            }
        }
        Ok(Homes { servers, of, lost })
    }

    /// Gives each of these projects a home that is alive, where it has none: the one with the fewest pools for its memory. What another
    /// server did meanwhile stays. The new homes.
    pub async fn find_homes(
        &self,
        projects: &[ProjectId],
        now: Timestamp,
    ) -> Result<Vec<(ProjectId, String)>, StoreError> {
        let mut tx = self.write.begin().await?;
        let mut servers: Vec<(String, i64, i64)> = db::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT id, memory_mib, (SELECT count(*) FROM home WHERE home.server = server.id)
             FROM server WHERE alive_until > {NOW} ORDER BY id"
        )))
        .fetch_all(&mut *tx)
        .await?;
        let mut found = Vec::new();
        for project in projects {
            // Without a loss of what the counts hold: the product of both sides.
            let fewest = |one: &&mut (String, i64, i64)| i128::from(one.2) * (1 << 40) / i128::from(one.1.max(1));
            let Some(best) = servers.iter_mut().min_by_key(fewest) else {
                break;
            };
            let taken: Option<i64> = db::query_scalar(sqlx::AssertSqlSafe(format!(
                "INSERT INTO home (project_id, server, generation, since) SELECT id, $2, 1, $3 FROM project WHERE id = $1
                 ON CONFLICT (project_id) DO UPDATE
                 SET server = excluded.server, generation = home.generation + 1, since = excluded.since
                 WHERE NOT EXISTS (SELECT 1 FROM server WHERE server.id = home.server AND server.alive_until > {NOW})
                 RETURNING generation"
            )))
            .bind(project.as_str())
            .bind(&best.0)
            .bind(millis(now))
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(generation) = taken {
                best.2 += 1;
                // A new project's first home is nothing that happened to it.
                if generation > 1 {
                    const WHY: &str = "the server that it was at home on is silent";
                    tell_home(&mut tx, project, &best.0, generation, WHY, now).await?;
                }
                found.push((project.clone(), best.0.clone()));
            }
        }
        tx.commit().await?;
        Ok(found)
    }

    /// Gives a project a home that a person chose. False when there is no such server that is alive, or no such project.
    pub async fn move_home(&self, project: &ProjectId, server: &str, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let moved: Option<i64> = db::query_scalar(sqlx::AssertSqlSafe(format!(
            "INSERT INTO home (project_id, server, generation, since)
             SELECT project.id, server.id, 1, $3 FROM project, server
             WHERE project.id = $1 AND server.id = $2 AND server.alive_until > {NOW}
             ON CONFLICT (project_id) DO UPDATE
             SET generation = home.generation + CASE WHEN home.server = excluded.server THEN 0 ELSE 1 END,
                 server = excluded.server, since = excluded.since
             RETURNING generation"
        )))
        .bind(project.as_str())
        .bind(server)
        .bind(millis(now))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(generation) = moved {
            tell_home(&mut tx, project, server, generation, "a person moved it", now).await?;
        }
        tx.commit().await?;
        Ok(moved.is_some())
    }

    /// Whether this server looks after a project: no other one may do it at the same time.
    pub(super) async fn is_home(&self, tx: &mut db::Tx, project: &ProjectId) -> Result<bool, StoreError> {
        let home = "SELECT $2 = '' OR EXISTS (SELECT 1 FROM home WHERE project_id = $1 AND server = $2)";
        let home = db::query_scalar(home).bind(project.as_str()).bind(self.server());
        Ok(home.fetch_one(tx).await?)
    }

    /// Which server runs an instance, if there is one.
    pub async fn server_of(&self, id: &InstanceId) -> Result<Option<String>, StoreError> {
        Ok(db::query_scalar("SELECT server FROM instance WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.read)
            .await?)
    }
}

async fn tell_home(
    tx: &mut super::writer::Writing,
    project: &ProjectId,
    server: &str,
    generation: i64,
    why: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let change = Change::of_project(EventKind::PoolMoved, project, now);
    let detail = json!({ "server": server, "generation": generation });
    tx.tell(change.because(why).with(detail)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Taken;
    use crate::contract_tests::{project, ready, take};
    use crate::testing::{Database, Kind};

    const LIVES: SignedDuration = SignedDuration::from_secs(60);

    fn at<'a>(place: &'a str, session: &'a str) -> NewServer<'a> {
        NewServer {
            place,
            url: Some("http://127.0.0.1:1"),
            version: "1",
            session,
            memory_mib: 1000,
            adopts: place == "host a",
        }
    }

    async fn begin(store: &Store, place: &str, lives: SignedDuration) -> Registered {
        store
            .register_server(at(place, place), lives, Timestamp::now())
            .await
            .unwrap()
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn pools_are_spread_over_servers_that_live_and_leave_those_that_do_not() {
        let database = Database::new(Kind::Postgres);
        let open = async |name: &str| database.open().await.of_server(name);
        let (a, b) = (open("a").await, open("b").await);
        assert_eq!(begin(&a, "host a", LIVES).await, Registered::Begun(1));
        assert_eq!(begin(&b, "host b", LIVES).await, Registered::Begun(1));
        let mut all = Vec::new();
        for name in ["one", "two", "three", "four"] {
            all.push(project(&a, name).await);
        }
        assert_eq!(a.homes().await.unwrap().lost.len(), 4);
        assert_eq!(a.find_homes(&all, Timestamp::now()).await.unwrap().len(), 4);
        // What has a home keeps it.
        assert_eq!(b.find_homes(&all, Timestamp::now()).await.unwrap(), []);
        let homes = b.homes().await.unwrap();
        assert_eq!(homes.servers.iter().map(|one| one.pools).collect::<Vec<_>>(), [2, 2]);
        assert!(homes.lost.is_empty());
        // A person may say otherwise, but not name one that is not there.
        assert!(b.move_home(&all[0], "b", Timestamp::now()).await.unwrap());
        assert!(!b.move_home(&all[0], "c", Timestamp::now()).await.unwrap());
        // One that is silent loses its pools, and has them no more when it is back.
        assert!(a.keep_alive("host a", SignedDuration::ZERO).await.unwrap());
        let homes = b.homes().await.unwrap();
        assert!(!homes.servers[0].alive);
        let lost: Vec<_> = homes.lost.into_iter().map(|(project, _)| project).collect();
        assert_eq!(lost.len(), 1);
        b.find_homes(&lost, Timestamp::now()).await.unwrap();
        assert!(b.homes().await.unwrap().of.values().all(|home| home == "b"));
        assert_eq!(begin(&a, "host a", LIVES).await, Registered::Begun(2));
        assert!(a.homes().await.unwrap().of.values().all(|home| home == "b"));
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn two_folders_with_one_id_do_not_work_at_once_and_a_server_that_was_replaced_is_told() {
        let database = Database::new(Kind::Postgres);
        let store = database.open().await.of_server("a");
        let register = async |place, session| {
            let new = at(place, session);
            store.register_server(new, LIVES, Timestamp::now()).await.unwrap()
        };
        assert_eq!(register("here", "s1").await, Registered::Begun(1));
        assert_eq!(register("there", "s2").await, Registered::Elsewhere("here".to_owned()));
        // The next process of the same folder need not wait.
        assert_eq!(register("here", "s3").await, Registered::Begun(2));
        assert!(!store.keep_alive("s1", LIVES).await.unwrap());
        assert!(store.keep_alive("s3", SignedDuration::ZERO).await.unwrap());
        assert_eq!(register("there", "s2").await, Registered::Begun(3));
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn what_is_there_before_servers_have_names_is_the_ones_that_adopts_it_and_others_neither_see_nor_claim_it() {
        let database = Database::new(Kind::Postgres);
        let before = database.open().await;
        let web = project(&before, "web").await;
        ready(&before, &web, 2).await;
        let (a, b) = (
            database.open().await.of_server("a"),
            database.open().await.of_server("b"),
        );
        assert!(before.has_unnamed().await.unwrap());
        begin(&b, "host b", LIVES).await;
        begin(&a, "host a", LIVES).await;
        assert!(!before.has_unnamed().await.unwrap());
        let seen = async |store: &Store| store.all_instances(Timestamp::now()).await.unwrap().len();
        assert_eq!((seen(&a).await, seen(&b).await), (2, 0));
        let home = |server: &str| vec![(web.clone(), server.to_owned())];
        assert_eq!(
            a.find_homes(std::slice::from_ref(&web), Timestamp::now())
                .await
                .unwrap(),
            home("a")
        );
        let ready_at = async |store: &Store| store.ready_by_recipe(&web).await.unwrap().len();
        assert_eq!((ready_at(&a).await, ready_at(&b).await), (1, 0));
        // Removed for good: nothing of it is left, and the other is asked.
        assert!(matches!(take(&a, &web, Some("T-1")).await, Taken::Instance(..)));
        a.forget_server(Timestamp::now()).await.unwrap();
        assert_eq!(b.claims_held(&web).await.unwrap(), None);
        assert!(b.claim_of(&web, "T-1").await.unwrap().unwrap().ended_at.is_some());
        assert_eq!(
            b.find_homes(std::slice::from_ref(&web), Timestamp::now())
                .await
                .unwrap(),
            home("b")
        );
        assert!(b.instances_of(&web).await.unwrap().is_empty());
    }
}
