//! How a server is started.

mod control;
mod listen;
mod openid;
mod tls;

use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hearth_api::project::VmSize;
use hearth_core::world::Limits;
use hearth_drivers::VmShape;

pub use control::{Changeable, Control, Pulse};
pub use listen::{Address, Listen, Listener, UNIX};
pub use openid::{OpenIdSettings, SignInRule, claim};
pub use tls::{AcmeSettings, TlsFiles, TlsSource};

use crate::repos::sources::SourceRule;
use crate::repos::watch::WebhookSecret;
use crate::store::{PostgresUrl, WriteFaults};

/// All options of `hearth serve`.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The PostgreSQL with the store; `None`: SQLite, in the data folder.
    pub database: Option<PostgresUrl>,
    /// Folders of images besides the data folder's own: what every data folder of this machine finds.
    pub shared_images: Vec<PathBuf>,
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// The certificate with which ports are listened at; without one they speak plain HTTP. Unix sockets always do.
    pub tls: Option<TlsSource>,
    /// What makes VMs.
    pub driver: DriverKind,
    /// Where Incus is, and what of it is used; for the driver `incus`.
    pub incus: hearth_drivers::incus::IncusSettings,
    /// The agent for images of Incus' own.
    pub agent: Option<hearth_drivers::incus::AgentBinary>,
    /// Whether to use hardware virtualisation.
    pub accel: hearth_drivers::qemu::Accel,
    /// Where repositories without a URL come from: this + `org/name`.
    pub git_base_url: String,
    /// Where the projects of other tenants than the first may fetch from, beside public hosts; the first rule that is about a
    /// place counts.
    pub sources: Vec<SourceRule>,
    /// What the VM sizes mean.
    pub sizes: Sizes,
    /// Time limit of one set-up command.
    pub command_timeout: Duration,
    /// Longest wait of a claim; one that asks for more gets this.
    pub longest_claim_wait: Duration,
    /// Requests per second and token, with bursts of five seconds' worth; 0 sets no limit.
    pub requests_per_second: u32,
    /// How long the headers of a request may take to arrive, and a new connection to send its first request.
    pub header_patience: Duration,
    /// Time a VM has to boot until its agent answers.
    pub boot_timeout: Duration,
    /// VMs that may be in the making at once.
    pub provision_concurrency: usize,
    /// Forks of templates that may be in the making at once.
    pub fork_concurrency: usize,
    /// What checkpoints may take on the disk, MiB. Those that a pool needs stay whatever they take.
    pub template_disk_mib: u64,
    /// A template of this age is built again, from the image.
    pub template_max_age: Duration,
    /// How often a ready VM is asked whether it still answers; zero: never.
    pub probe_interval: Duration,
    /// How long a VM that runs has to answer then. Every miss but the last few is forgiven; see the rules in `vms/probe.rs`.
    pub probe_patience: Duration,
    /// Time between two looks at a repository whose branches are followed; zero: it looks once, and then only for webhooks.
    pub watch_interval: Duration,
    /// Where other servers of the same database reach this one; `None`: at the first port that it listens at, if that has an address.
    pub advertise: Option<String>,
    /// The authority of the other servers' certificates, PEM, beside those that every program trusts.
    pub peer_authority: Option<Vec<u8>>,
    /// Where people sign in to the pages without a token; `None`: only with one.
    pub openid: Option<OpenIdSettings>,
    /// What webhooks are signed with; without one none is taken.
    pub webhook_secret: Option<WebhookSecret>,
    /// An unused image that no project names and that a newer one of its name has replaced is removed at this age; zero: never.
    pub image_max_age: Duration,
    /// What images may take on the disk, MiB, before such ones go sooner; `None`: there is no limit.
    pub image_disk_mib: Option<u64>,
    /// Room on the disk that is kept for deletions when it is full, MiB; 0: none.
    pub reserve_mib: u64,
    /// VMs that may exist at once.
    pub max_vms: usize,
    /// VMs that all projects of one tenant may have at once.
    pub tenant_vms: Option<usize>,
    /// Sum of the memory sizes of all VMs, MiB.
    pub memory_mib: u64,
    /// Of the memory that a claimed VM may still take, the share that it counts with besides what it uses, percent.
    pub claimed_reserve: u8,
    /// Names below this one, `{port}-{id}.<domain>`, lead to ports of VMs.
    pub ports_domain: Option<String>,
    /// Who answers the VMs' name queries; `None`: the resolver of this host.
    pub dns_upstream: Option<SocketAddrV4>,
    /// Time between two passes of the loop when no wake comes. A VM that died is noticed after one such time.
    pub tick: Duration,
    /// Where metrics can be read without a token; `None`: only with one, where the API is.
    pub metrics_listen: Option<SocketAddr>,
    /// Entries of the audit log are removed at this age.
    pub audit_max_age: Duration,
    /// Records of claims and boots, with their logs, are removed at this age.
    pub history_max_age: Duration,
    /// What those may take on the disk, about, MiB; the oldest go first.
    pub history_disk_mib: u64,
    /// Events are removed at this age.
    pub events_max_age: Duration,
    /// Events that are kept at most; the oldest go first.
    pub most_events: u64,
    /// How long a minute of a project's `idlePauseMinutes` lasts; a test makes it short.
    #[doc(hidden)]
    pub idle_minute: Duration,
    /// The hold on the server while it runs.
    pub control: Control,
    /// How long a second of the pauses between attempts of a webhook lasts; a test makes it short.
    #[doc(hidden)]
    pub webhook_second: Duration,
    /// Writes that a test lets fail.
    #[doc(hidden)]
    pub write_faults: Option<WriteFaults>,
}

/// Far more than an agent or a polling client needs, and few enough that a faulty client does not slow down the others.
const REQUESTS_PER_SECOND: u32 = 100;
/// How long the headers of a request may take to arrive: long for the slowest line, short for who only wants to hold one.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// VMs that may exist at once when nothing else is said; the memory is used up long before.
const MAX_VMS: usize = 500;
/// Share of the host's memory that all VMs together may have, in quarters; the rest is for the host and its page cache.
const MEMORY_QUARTERS: u64 = 3;
/// A host that does not tell its memory counts as a small laptop, MiB.
const UNKNOWN_HOST_MIB: u64 = 8 * 1024;
/// A set-up command of one VM keeps a processor of the guest and one of the emulator busy; fewer at once finish sooner.
const PROCESSORS_PER_PROVISION: usize = 2;
/// About 150 checkpoints of a small VM.
const TEMPLATE_DISK_MIB: u64 = 20 * 1024;
/// A day: long enough to be worth making, short enough that packages and repositories below it are not forgotten.
const TEMPLATE_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Often enough that a dead VM is rarely the first that a claim finds, and too seldom to cost anything.
const PROBE_INTERVAL: Duration = Duration::from_secs(300);
/// Longer than a guest that compiles on a busy host keeps its agent waiting.
const PROBE_PATIENCE: Duration = Duration::from_secs(15);
/// A push is noticed soon enough without a webhook, and the polls cost a git host next to nothing.
const WATCH_INTERVAL: Duration = Duration::from_secs(60);
/// A fork computes nearly all of its time: more at once than processors take longer in all. One more hides what little waiting
/// there is, and it is the one that refills leave to claims.
const FORKS_BESIDES_PROCESSORS: usize = 1;
/// Hardly any task fills its VM, and never all at once; the quarter of the host that VMs do not get stands behind it, too.
const CLAIMED_RESERVE: u8 = 50;
/// Browsers and systems lead every name below it to their own machine, without any DNS.
const PORTS_DOMAIN: &str = "localhost";
/// Seldom enough to cost nothing, often enough that a missed wake delays no one for long.
const TICK: Duration = Duration::from_secs(3);
/// A month: a user who goes back to an earlier image does so sooner.
const IMAGE_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Many times what the deletion of everything writes, and little beside one VM.
const RESERVE_MIB: u64 = 16;
/// Long enough to find out who did something that is noticed a quarter later.
const AUDIT_MAX_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// A month: long enough to see whether a change of the set-up was worth it.
const HISTORY_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Some hundred thousand boots with short logs.
const HISTORY_DISK_MIB: u64 = 1024;
/// A client that was away for a weekend continues where it was.
const EVENTS_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// About 200 MB of the database.
const MOST_EVENTS: u64 = 500_000;
/// Two at once hide each other's waiting for disk and network.
const LEAST_PROVISIONS: usize = 2;

impl ServeOptions {
    /// The defaults, for this data folder.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            data_dir,
            database: None,
            shared_images: Vec::new(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7717)).into()],
            tls: None,
            driver: DriverKind::Qemu,
            incus: hearth_drivers::incus::IncusSettings::default(),
            agent: None,
            accel: hearth_drivers::qemu::Accel::Auto,
            git_base_url: "https://github.com".to_owned(),
            sources: Vec::new(),
            sizes: Sizes::default(),
            command_timeout: Duration::from_secs(1800),
            longest_claim_wait: Duration::from_secs(3600),
            requests_per_second: REQUESTS_PER_SECOND,
            header_patience: HEADER_PATIENCE,
            boot_timeout: Duration::from_secs(300),
            provision_concurrency: (processors / PROCESSORS_PER_PROVISION).max(LEAST_PROVISIONS),
            fork_concurrency: processors + FORKS_BESIDES_PROCESSORS,
            template_disk_mib: TEMPLATE_DISK_MIB,
            template_max_age: TEMPLATE_MAX_AGE,
            probe_interval: PROBE_INTERVAL,
            probe_patience: PROBE_PATIENCE,
            watch_interval: WATCH_INTERVAL,
            advertise: None,
            peer_authority: None,
            openid: None,
            webhook_secret: None,
            image_max_age: IMAGE_MAX_AGE,
            image_disk_mib: None,
            reserve_mib: RESERVE_MIB,
            max_vms: MAX_VMS,
            tenant_vms: None,
            memory_mib: total_memory_mib() / 4 * MEMORY_QUARTERS,
            claimed_reserve: CLAIMED_RESERVE,
            ports_domain: Some(PORTS_DOMAIN.to_owned()),
            dns_upstream: None,
            tick: TICK,
            metrics_listen: None,
            audit_max_age: AUDIT_MAX_AGE,
            history_max_age: HISTORY_MAX_AGE,
            history_disk_mib: HISTORY_DISK_MIB,
            events_max_age: EVENTS_MAX_AGE,
            most_events: MOST_EVENTS,
            idle_minute: Duration::from_secs(60),
            control: Control::default(),
            webhook_second: Duration::from_secs(1),
            write_faults: None,
        }
    }
}

impl ServeOptions {
    /// Those of the settings that a running server takes over.
    #[must_use]
    pub fn changeable(&self) -> Changeable {
        Changeable {
            max_vms: self.max_vms,
            tenant_vms: self.tenant_vms,
            provision_concurrency: self.provision_concurrency,
            requests_per_second: self.requests_per_second,
            webhook_secret: self.webhook_secret.clone(),
        }
    }
}

fn total_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(UNKNOWN_HOST_MIB, |kib| kib / 1024)
}

/// Which driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// Real VMs on this machine.
    Qemu,
    /// Instances of Incus, on this machine or on a cluster.
    Incus,
    /// In memory, for tests of clients; never a default.
    Fake,
}

/// What each VM size means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes([VmShape; VmSize::ALL.len()]);

/// Size of the root disk when nothing else is said, GiB; sparse, so only what is written counts.
const DISK_GIB: u32 = 20;

impl Default for Sizes {
    fn default() -> Self {
        let shape = |vcpus, gib: u32| VmShape {
            vcpus,
            memory_mib: gib * 1024,
            disk_gib: DISK_GIB,
        };
        Self([shape(1, 1), shape(2, 2), shape(4, 8), shape(8, 16), shape(16, 32)])
    }
}

impl Sizes {
    /// What a size means.
    #[must_use]
    pub fn shape(&self, size: VmSize) -> VmShape {
        self.0[size as usize]
    }

    /// Gives a size another meaning.
    pub fn set(&mut self, size: VmSize, shape: VmShape) {
        self.0[size as usize] = shape;
    }
}

/// What the host may be used for; it changes while the server runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedLimits(Arc<RwLock<Limits>>);

impl SharedLimits {
    /// These, until they change.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(RwLock::new(limits)))
    }

    /// What holds now.
    #[must_use]
    pub fn get(&self) -> Limits {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what of the settings is a limit.
    pub fn change(&self, settings: &Changeable) {
        let mut limits = self.0.write().unwrap_or_else(PoisonError::into_inner);
        limits.max_vms = settings.max_vms;
        limits.tenant_vms = settings.tenant_vms;
        limits.concurrent_provisions = settings.provision_concurrency.max(1);
    }
}
