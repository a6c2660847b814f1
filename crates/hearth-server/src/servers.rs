//! The servers that share one database. Each says at short intervals that it is alive; each project's pool is at home on one of them, which
//! makes its VMs, hands them over and answers what is asked of it; when that one is silent for too long another one becomes its home. Who
//! is asked for something that is elsewhere passes the request on (`http/relay.rs`).
//!
//! In SQLite there is one server: everything is here, and nothing of this runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::store::{Homes, NewServer, Registered, ServerRow, Store, StoreError};
use crate::wake::Wake;

/// A server that did not say for so long that it is alive is silent: its pools get another home.
const LIVES: SignedDuration = SignedDuration::from_secs(6);
/// How often it says so, and looks for those that are silent.
const BEAT: Duration = Duration::from_millis(1500);
/// So long after its own start, or after a time in which it could not say that it is alive, a server takes no pool from another one: when a
/// whole house comes back, or PostgreSQL, each gets its own again.
const NEWCOMER: Duration = Duration::from_secs(10);
/// How long a lease of what one server does for all lasts.
const LEASE: SignedDuration = SignedDuration::from_secs(6);

/// Why a server cannot be one of several.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A copied data folder, say.
    #[error(
        "another server with this one's id is alive, {0}: where this data folder is a copy of another one, remove the file server-id from it"
    )]
    IdInUse(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this server, or it does not matter.
    Here,
    /// On another one, which is alive.
    There(ServerRow),
    /// On another one, which is silent.
    Silent(ServerRow),
}

/// What is known of the servers.
#[derive(Debug, Default)]
struct Known {
    homes: Arc<Homes>,
    /// When that was read.
    at: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    wake: Wake,
    /// Names this process.
    session: String,
    /// Since when it says without a gap that it is alive.
    began: Mutex<Instant>,
    known: RwLock<Known>,
    /// One reads at a time.
    reading: tokio::sync::Mutex<()>,
    /// This server does what one does for all.
    leads: AtomicBool,
}

/// The servers of a store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Servers(Arc<Inner>);

impl Servers {
    /// Whether there may be several.
    #[must_use]
    pub fn are_several(&self) -> bool {
        self.0.store.is_shared()
    }

    /// The servers of a store; `session` names this process.
    #[must_use]
    pub fn new(store: Store, wake: Wake, session: String) -> Self {
        let alone = !store.is_shared();
        Self(Arc::new(Inner {
            store,
            wake,
            session,
            began: Mutex::new(Instant::now()),
            known: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
            leads: AtomicBool::new(alone),
        }))
    }

    /// This process works from now on. Nothing where there is one server.
    pub async fn begin(
        &self,
        place: &str,
        url: Option<&str>,
        memory_mib: u64,
        adopts: bool,
    ) -> Result<(), ServerError> {
        let inner = &self.0;
        if !inner.store.is_shared() {
            return Ok(());
        }
        let new = NewServer {
            place,
            url,
            version: env!("CARGO_PKG_VERSION"),
            session: &inner.session,
            memory_mib,
            adopts,
        };
        match inner.store.register_server(new, LIVES, Timestamp::now()).await? {
            Registered::Begun(generation) => {
                tracing::info!(
                    server = inner.store.server(),
                    generation,
                    url,
                    "one of the servers of this database"
                );
                Ok(())
            }
            Registered::Elsewhere(place) => Err(ServerError::IdInUse(place)),
        }
    }

    /// Says that this server is alive, and finds homes for pools of those that are silent, until `stop`. When another process took its
    /// place meanwhile, `stop` is cancelled here.
    pub async fn run(&self, stop: CancellationToken) {
        if self.0.store.is_shared() {
            // Apart: what waits for a lock must not keep this server from saying that it is alive.
            tokio::join!(self.say_alive(&stop), self.look_after(&stop));
        }
    }

    async fn say_alive(&self, stop: &CancellationToken) {
        let inner = &self.0;
        let mut said = Instant::now();
        loop {
            match inner.store.keep_alive(&inner.session, LIVES).await {
                Ok(true) => {
                    if said.elapsed() > BEAT * 2 {
                        *inner.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    }
                    said = Instant::now();
                }
                Ok(false) => {
                    tracing::error!("another process has this server's place in the database; this one ends");
                    return stop.cancel();
                }
                Err(error) => tracing::warn!(%error, "the other servers cannot be told that this one is alive"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }

    fn is_newcomer(&self) -> bool {
        let began = *self.0.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.elapsed() < NEWCOMER
    }

    async fn look_after(&self, stop: &CancellationToken) {
        let inner = &self.0;
        loop {
            self.lead().await;
            if let Err(error) = self.look_after_all().await {
                tracing::warn!(%error, "the servers of this database could not be read; it is tried again");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
        if self.leads()
            && let Err(error) = inner.store.release_controller(&inner.session).await
        {
            tracing::debug!(%error, "a lease could not be given back; it runs out by itself");
        }
    }

    async fn lead(&self) {
        let inner = &self.0;
        let held = inner
            .store
            .hold_controller(&inner.session, Timestamp::now(), LEASE, false)
            .await;
        inner.leads.store(matches!(held, Ok(Some(_))), Ordering::Relaxed);
    }

    /// Whether this server does what one does for all: posts webhooks, and writes the history.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.leads.load(Ordering::Relaxed)
    }

    async fn look_after_all(&self) -> Result<(), StoreError> {
        let homes = self.read().await?;
        if homes.lost.is_empty() {
            return Ok(());
        }
        let newcomer = self.is_newcomer();
        let wanted: Vec<ProjectId> = homes
            .lost
            .iter()
            .filter(|lost| !newcomer || lost.1.is_none())
            .map(|(project, _)| project.clone())
            .collect();
        self.find_homes(&wanted).await
    }

    async fn find_homes(&self, projects: &[ProjectId]) -> Result<(), StoreError> {
        let inner = &self.0;
        if projects.is_empty() {
            return Ok(());
        }
        let found = inner.store.find_homes(projects, Timestamp::now()).await?;
        for (project, server) in &found {
            tracing::info!(%project, server, "a pool has a home");
        }
        if !found.is_empty() {
            inner.wake.wake();
            self.read().await?;
        }
        Ok(())
    }

    /// Reads what there is.
    async fn read(&self) -> Result<Arc<Homes>, StoreError> {
        let inner = &self.0;
        let asked = Instant::now();
        let _one = inner.reading.lock().await;
        // Somebody else may have read it meanwhile.
        let known = |known: &Known| known.at.is_some_and(|at| at > asked).then(|| known.homes.clone());
        if let Some(homes) = known(&inner.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(homes);
        }
        let at = Instant::now();
        let homes = Arc::new(inner.store.homes().await?);
        let mut kept = inner.known.write().unwrap_or_else(PoisonError::into_inner);
        kept.homes = homes.clone();
        kept.at = Some(at);
        Ok(homes)
    }

    /// What was read lately, or is read now.
    async fn lately(&self) -> Result<Arc<Homes>, StoreError> {
        let fresh = {
            let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
            known
                .at
                .filter(|at| at.elapsed() < BEAT * 2)
                .map(|_| known.homes.clone())
        };
        match fresh {
            Some(homes) => Ok(homes),
            None => self.read().await,
        }
    }

    /// What was read is not so any more: a server did not answer, or said that it is not what is asked for.
    pub fn doubt(&self) {
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).at = None;
    }

    /// Where a project's pool is at home. One without a home that is alive gets one.
    pub async fn of_project(&self, project: &ProjectId) -> Result<Place, StoreError> {
        if !self.0.store.is_shared() {
            return Ok(Place::Here);
        }
        let homes = self.lately().await?;
        if let Some(place) = self.place(&homes, homes.of.get(project)) {
            return Ok(place);
        }
        self.doubt();
        let homes = self.read().await?;
        if let Some(place) = self.place(&homes, homes.of.get(project)) {
            return Ok(place);
        }
        // No such project: that is said here.
        let Some((_, silent)) = homes.lost.iter().find(|(lost, _)| lost == project) else {
            return Ok(Place::Here);
        };
        if self.is_newcomer()
            && let Some(place @ Place::Silent(_)) = self.place(&homes, silent.as_ref())
        {
            return Ok(place);
        }
        self.find_homes(std::slice::from_ref(project)).await?;
        let homes = self.read().await?;
        Ok(self.place(&homes, homes.of.get(project)).unwrap_or(Place::Here))
    }

    /// Which server runs an instance.
    pub async fn of_instance(&self, id: &InstanceId) -> Result<Place, StoreError> {
        let inner = &self.0;
        if !inner.store.is_shared() {
            return Ok(Place::Here);
        }
        let Some(server) = inner.store.server_of(id).await? else {
            return Ok(Place::Here);
        };
        let place = self.place(&*self.lately().await?, Some(&server));
        match place {
            // It may be back since that was read, or be new.
            None | Some(Place::Silent(_)) => {
                self.doubt();
                Ok(self.place(&*self.read().await?, Some(&server)).unwrap_or(Place::Here))
            }
            Some(place) => Ok(place),
        }
    }

    fn place(&self, homes: &Homes, server: Option<&String>) -> Option<Place> {
        let server = server?;
        if server == self.0.store.server() {
            return Some(Place::Here);
        }
        let row = homes.servers.iter().find(|row| row.id == *server)?.clone();
        Some(if row.alive {
            Place::There(row)
        } else {
            Place::Silent(row)
        })
    }

    /// The others that are alive.
    pub async fn others(&self) -> Result<Vec<ServerRow>, StoreError> {
        let homes = self.lately().await?;
        let others = homes
            .servers
            .iter()
            .filter(|row| row.alive && row.id != self.0.store.server());
        Ok(others.cloned().collect())
    }

    /// All servers of this database, as they are now; none where there can be only one.
    pub async fn all(&self) -> Result<Vec<ServerRow>, StoreError> {
        Ok(self.0.store.homes().await?.servers)
    }

    /// Gives a project's pool another home. False when there is no such server that is alive.
    pub async fn move_home(&self, project: &ProjectId, server: &str) -> Result<bool, StoreError> {
        let moved = self.0.store.move_home(project, server, Timestamp::now()).await?;
        self.doubt();
        self.0.wake.wake();
        Ok(moved)
    }
}
