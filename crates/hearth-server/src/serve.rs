//! Start and end of a server.

mod backup;
mod database;
mod identity;
mod move_store;
mod uninstall;

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::TokenId;
use hearth_api::token::{Scope, TokenItem};
use hearth_core::tenant::FIRST_TENANT;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_drivers::incus::{IncusDriver, IncusOptions};
use hearth_drivers::qemu::{QemuDriver, QemuOptions};
use hearth_image::{PrunePolicy, Stores};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::identity::{IdentityError, advertised, label, place};
use crate::app::{App, AppError};
use crate::doors;
use crate::http::{Answering, Tls, TlsError, answer, answer_metrics, new_token};
use crate::options::{Address, DriverKind, Listen, Listener, ServeOptions, TlsSource};
use crate::repos::mirrors::sweep;
use crate::secrets::cipher::{Cipher, SecretError, write_private};
use crate::secrets::links::LinkKey;
use crate::servers::ServerError;
use crate::store::{NewToken, Store, StoreError};
use crate::templates::images;
use crate::web;

pub use backup::{BackupError, Description, KeySource, back_up, describe, restore};
pub use move_store::{MoveError, move_store};
pub use uninstall::{Removed, is_data_folder, uninstall};

/// The database, in the data folder.
const DATABASE: &str = "hearth.db";
/// The key of its secrets.
const SECRET_KEY: &str = "secret.key";
/// The first token.
const ADMIN_TOKEN: &str = "admin-token";
/// What an authority gave by ACME: the certificate, its key and the account's.
const CERTIFICATES: &str = "certificates";
/// How long requests that are under way may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// So long a server waits for the lock of the data folder: one that was just killed still has it for some milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks meanwhile.
const LOCK_CHECK: Duration = Duration::from_millis(20);

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another server works on this data folder.
    #[error("another Hearth server uses the data folder {}; stop it first, or use another --data-dir", .0.display())]
    InUse(PathBuf),
    /// Another process has this database alone.
    #[error(
        "an older Hearth server, or `hearth store move`, has this database alone; stop it first, or name another database with --database"
    )]
    DatabaseInUse,
    /// The server was started without what says where its store is.
    #[error(
        "the store of this data folder is in PostgreSQL: start the server with --database {0} (or HEARTH_DATABASE, which may hold the password, too)"
    )]
    StoreElsewhere(String),
    /// PostgreSQL was named, and what is there is no store of this data folder.
    #[error(
        "the database holds another store than this data folder's, or none; name the one that the file `database` of the data folder says"
    )]
    OtherStore,
    /// PostgreSQL was named, and there is a store in SQLite.
    #[error(
        "the data folder {} has its store in {DATABASE}: `hearth store move --to URL` moves it to PostgreSQL; or use another --data-dir",
        .0.display()
    )]
    StoreHere(PathBuf),
    /// The data folder cannot be used.
    #[error("the data folder {} cannot be used: {source}", path.display())]
    DataDir {
        /// Which file or folder.
        path: PathBuf,
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen { address: Listen, source: std::io::Error },
    /// A socket cannot be listened at any more.
    #[error("requests cannot be answered any more: {0}")]
    Answer(std::io::Error),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address for metrics cannot be listened on.
    #[error("cannot listen on {address} for metrics: {source}; choose another with --metrics-listen")]
    ListenForMetrics {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Each would take the other's VMs for its own.
    #[error("another server works with this database, and with the driver `incus` there can be one: stop it first")]
    OneForIncus,
    /// It cannot be one of several servers.
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error("VMs cannot be made on this machine: {0}; `hearth doctor` says more")]
    Driver(#[from] hearth_drivers::DriverError),
}

/// Mode of a folder that only its owner can enter.
const OWNER_ALONE: u32 = 0o700;

/// Makes a folder that only its owner can enter, or makes it one: whatever the data folder's own mode is, repositories lie in it.
fn private_folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(OWNER_ALONE)
        .create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_ALONE))
}

/// Runs a server until `stop` is cancelled. `ready` is called with its addresses when it listens. VMs outlive it.
pub async fn serve(
    options: ServeOptions,
    ready: impl FnOnce(&[Address]) + Send,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let make = |installation| driver(&options, installation);
    serve_with(&options, make, ready, stop).await
}

/// The same with a driver of the caller's own; `make` gets the name of the installation that labels its VMs.
pub async fn serve_with(
    options: &ServeOptions,
    make: impl FnOnce(String) -> Result<Arc<dyn Driver>, ServeError> + Send,
    ready: impl FnOnce(&[Address]) + Send,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let folder = options.data_dir.as_path();
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::DataDir { path, source }
    };
    // One that is there may hold other things, too: each secret file in it has its own permissions.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(OWNER_ALONE)
        .create(folder)
        .map_err(fail(folder))?;
    let _lock = lock(folder).await?;
    let mirrors = folder.join("mirrors");
    private_folder(&mirrors).map_err(fail(&mirrors))?;
    sweep(&mirrors).map_err(fail(&mirrors))?;
    let key = folder.join(SECRET_KEY);
    let cipher = Arc::new(Cipher::open(&key)?);
    let links = LinkKey::open(&key)?;
    let (store, alone) = database::open(options, cipher).await?;
    let installation = store
        .meta_or_insert("installation", &uuid::Uuid::now_v7().simple().to_string())
        .await?;
    let known = database::is_known(options);
    let (label, adopts) = label(&store, &installation, &links, known).await?;
    database::note(options, &installation)?;
    first_token(&store, folder).await?;
    // An engine that several servers share knows the installation; whatever is one machine's is its own server's.
    let driver = make(match options.driver {
        DriverKind::Incus => installation,
        DriverKind::Qemu | DriverKind::Fake => label,
    })?;
    let app = App::new(&store, driver.clone(), mirrors, links, options)?;
    let (listeners, addresses) = open(&options.listen)?;
    let url = advertised(options, &addresses);
    app.state
        .servers
        .begin(&place(folder), url.as_deref(), options.memory_mib, adopts)
        .await?;
    if options.driver == DriverKind::Incus && !app.state.servers.others().await?.is_empty() {
        return Err(ServeError::OneForIncus);
    }
    // Of the server before this one with these VMs.
    store.unreserve_all().await?;
    store.undo_unanswered_claims(Timestamp::now()).await?;
    store.undo_checkpoints().await?;
    let rules = options.openid.as_ref().map(ToString::to_string).unwrap_or_default();
    store.end_sign_ins_unless(&rules, Timestamp::now()).await?;
    let openid = options.openid.clone().map(web::Provider::new).transpose();
    let openid = openid.map_err(AppError::from)?.map(Arc::new);
    let certificates = folder.join(CERTIFICATES);
    if let Some(TlsSource::Acme(_)) = &options.tls {
        private_folder(&certificates).map_err(fail(&certificates))?;
    }
    let tls = options.tls.as_ref().map(|source| Tls::open(source, &certificates));
    let tls = tls.transpose()?;
    let policy = PrunePolicy {
        max_age: Some(options.image_max_age).filter(|age| !age.is_zero()),
        max_bytes: options.image_disk_mib.map(|mib| mib << 20),
    };
    let change = app.changes();
    let metrics_listener = options.metrics_listen.map(listen_for_metrics).transpose()?;
    let (state, mut loops) = app.start(&stop);
    if let Some(listener) = metrics_listener {
        let (metrics, stop) = (state.metrics.clone(), stop.clone());
        loops.push(tokio::spawn(answer_metrics(listener, metrics, stop)));
    }
    let (claims, audit) = (state.claims.clone(), state.audit.clone());
    loops.push(tokio::spawn(async move {
        claims.resume_stopped().await;
        claims.watch_release_sessions().await;
    }));
    loops.push(tokio::spawn(images::keep(
        store.clone(),
        folder.to_owned(),
        policy,
        stop.clone(),
    )));
    loops.push(tokio::spawn({
        let (alone, stop) = (alone.clone(), stop.clone());
        async move {
            tokio::select! {
                () = alone.lost() => {
                    tracing::error!("while PostgreSQL was away another Hearth server took the database; this server ends");
                    stop.cancel();
                }
                () = stop.cancelled() => {}
            }
        }
    }));
    if let Some(tls) = &tls {
        loops.push(tokio::spawn(tls.clone().watch(stop.clone())));
    }
    let reload = tls.clone();
    options.control.on_change(move |settings| {
        // First what may fail: with a fault nothing changes.
        let reloaded = reload.as_ref().map_or(Ok(()), Tls::reload);
        reloaded.map_err(|error| error.to_string())?;
        change(&settings);
        Ok(())
    });
    for address in &addresses {
        tracing::info!(%address, tls = tls.is_some() && address.tcp().is_some(), data = %folder.display(), "listening");
    }
    ready(&addresses);
    let answering = Answering {
        tls,
        patience: options.header_patience,
        drain: DRAIN,
    };
    let (shared, stopping) = (state.clone(), stop.clone());
    let pages = move |api| {
        let others = doors::mcp::routes(&api, stopping).merge(doors::e2b::routes(shared.clone(), &api));
        web::pages(shared, api, openid, options).merge(others)
    };
    let domain = options.ports_domain.clone();
    let around = move |router| doors::e2b::around(router, domain);
    let answered = answer(listeners, state, pages, around, stop.clone(), answering).await;
    audit.end().await;
    answered.map_err(ServeError::Answer)?;
    stop.cancel();
    // A panic in a loop was logged where it happened.
    let _ = futures::future::join_all(loops).await;
    drop(alone);
    store.close().await;
    if let Err(error) = driver.stand_down().await {
        tracing::warn!(%error, "helper processes of the VMs could not be ended");
    }
    tracing::info!("stopped; VMs keep running, and the next server takes them over");
    Ok(())
}

/// Opens all sockets, and says where they are reached.
fn open(places: &[Listen]) -> Result<(Vec<Listener>, Vec<Address>), ServeError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for place in places {
        let failed = |source| ServeError::Listen {
            address: place.clone(),
            source,
        };
        let listener = Listener::open(place).map_err(failed)?;
        addresses.push(listener.address().map_err(failed)?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

/// Metrics have an address of their own, so that who reads them needs no token and reaches nothing else.
fn listen_for_metrics(address: SocketAddr) -> Result<std::net::TcpListener, ServeError> {
    let fail = |source| ServeError::ListenForMetrics { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    if address.ip().is_loopback() {
        tracing::info!(%address, "metrics can be read without a token");
    } else {
        tracing::warn!(%address, "metrics can be read without a token by all who reach this address");
    }
    Ok(listener)
}

/// One server per data folder; the lock goes with the process, however it ends. One that was killed this moment has a little
/// time to end: a server that is started again at once finds the folder free.
async fn lock(folder: &Path) -> Result<std::fs::File, ServeError> {
    let path = folder.join("lock");
    let fail = |source| ServeError::DataDir {
        path: path.clone(),
        source,
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(LOCK_CHECK).await,
            Err(std::fs::TryLockError::WouldBlock) => return Err(ServeError::InUse(folder.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
    }
}

/// The first start writes an admin token to `<data-dir>/admin-token` (0600).
async fn first_token(store: &Store, folder: &Path) -> Result<(), ServeError> {
    let path = folder.join(ADMIN_TOKEN);
    if store.count_tokens().await? > 0 {
        return Ok(());
    }
    let (token, hash) = new_token();
    let item = TokenItem {
        id: TokenId::generate(),
        name: "first admin token".to_owned(),
        owner: FIRST_TENANT.to_owned(),
        tenant: FIRST_TENANT.to_owned(),
        scopes: vec![Scope::Admin],
        project_id: None,
        name_prefix: None,
        max_vms: None,
        created_at: Timestamp::now(),
        last_used_at: None,
        expires_at: None,
    };
    // The file first: with a token that is only in the database, no one could log in.
    write_private(&path, format!("{token}\n").as_bytes()).map_err(|source| ServeError::DataDir { path, source })?;
    store
        .insert_token(&NewToken {
            item: &item,
            hash: &hash,
        })
        .await?;
    Ok(())
}

fn driver(options: &ServeOptions, installation: String) -> Result<Arc<dyn Driver>, ServeError> {
    Ok(match options.driver {
        DriverKind::Qemu => Arc::new(QemuDriver::open(QemuOptions {
            data_dir: options.data_dir.clone(),
            images_dir: options.data_dir.join("images"),
            shared_images: options.shared_images.clone(),
            installation,
            accel: options.accel,
            vm_user: None,
            gateway: hearth_drivers::gateway_program(),
            dns_upstream: options.dns_upstream,
        })?),
        DriverKind::Incus => Arc::new(IncusDriver::open(IncusOptions {
            settings: options.incus.clone(),
            installation,
            stores: Stores::new(options.data_dir.clone(), options.shared_images.clone()),
            agent: options.agent.clone(),
        })?),
        DriverKind::Fake => Arc::new(FakeDriver::new(0, FakeOptions::default())),
    })
}
