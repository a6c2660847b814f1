//! The one place that knows all components: it builds each and hands it what it needs.

use std::path::PathBuf;
use std::sync::Arc;

use hearth_core::world::Limits;
use hearth_drivers::{Driver, Locks};
use jiff::SignedDuration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditWriter, audit_log};
use crate::builds::live_log::LiveLogs;
use crate::builds::{Builder, Timeouts};
use crate::claims::{self, Claims, Queues};
use crate::doors;
use crate::events::{Feed, Keep};
use crate::history::{Historian, KeepHistory};
use crate::http::{AppState, HookGate, Pace, PortAccess, Relay, VisitorLimit};
use crate::metrics::Metrics;
use crate::options::{Changeable, ServeOptions, SharedLimits};
use crate::pools::act::Actor;
use crate::pools::controller::Controller;
use crate::pools::endings::Endings;
use crate::pools::observe::Observer;
use crate::pools::orders::Orders;
use crate::recipes::set_ups::SetUps;
use crate::recipes::target::Recipes;
use crate::repos::mirror_gc::MirrorGc;
use crate::repos::mirrors::Mirrors;
use crate::repos::sources::{Sources, known_hosts};
use crate::repos::watch::Watch;
use crate::secrets::links::LinkKey;
use crate::servers::Servers;
use crate::status::PoolStatus;
use crate::store::{Elsewhere, Store};
use crate::templates::environment::Environments;
use crate::templates::gc::Gc;
use crate::templates::images::Images;
use crate::vms::admission::Admission;
use crate::vms::connections::Connections;
use crate::vms::egress::Egress;
use crate::vms::guest_requests::GuestRequests;
use crate::vms::idle::IdlePause;
use crate::vms::memory::Memory;
use crate::vms::pause::Pause;
use crate::vms::probe::{Probes, Rhythm};
use crate::wake::Wake;
use crate::webhooks::Webhooks;

/// What cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Two metrics have one name: a bug here.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The certificates of this machine cannot be read, say.
    #[error("the HTTP client for webhooks, sign-ins and other servers cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
}

/// A server's components.
pub struct App {
    /// What its handlers have.
    pub state: AppState,
    limits: SharedLimits,
    controller: Controller,
    guest_requests: GuestRequests,
    idle: IdlePause,
    audit: AuditWriter,
    historian: Historian,
    queues: Queues,
}

impl App {
    /// Nothing runs until [`App::start`]. `mirrors` is the folder of the repositories. Fails where something that all servers have cannot be set up.
    pub fn new(
        store: &Store,
        driver: Arc<dyn Driver>,
        mirrors: PathBuf,
        links: LinkKey,
        options: &ServeOptions,
    ) -> Result<Self, AppError> {
        let (store, wake, queues) = (store.clone(), Wake::default(), Queues::default());
        let session: Arc<str> = uuid::Uuid::now_v7().simple().to_string().into();
        let servers = Servers::new(store.clone(), wake.clone(), session.to_string());
        let relay = Relay::new(
            servers.clone(),
            links.clone(),
            options.ports_domain.clone(),
            options.peer_authority.as_deref(),
            doors::e2b::about,
        )?;
        let connections = Connections::new(driver.clone());
        let memory = Memory::new(driver.clone(), options.claimed_reserve);
        let admission = Admission::new(store.clone(), driver.clone(), memory.clone(), options.memory_mib);
        let pause = Pause::new(
            store.clone(),
            driver.clone(),
            wake.clone(),
            admission,
            connections.clone(),
        );
        let idle = IdlePause::new(store.clone(), pause.clone(), connections.clone(), options.idle_minute);
        let sources = Sources::new(&options.sources, known_hosts(&mirrors)).with_credentials(store.clone());
        let mirrors = Mirrors::new(mirrors, sources);
        let watch = Watch::new(
            store.clone(),
            mirrors.clone(),
            wake.clone(),
            options.watch_interval,
            options.command_timeout,
        );
        let recipes = Recipes::new(Environments::new(driver.clone()), options.sizes.clone());
        let set_ups = SetUps::new(store.clone());
        let live_logs = LiveLogs::default();
        let builder = Builder::new(
            store.clone(),
            driver.clone(),
            connections.clone(),
            mirrors.clone(),
            live_logs.clone(),
            recipes.clone(),
            Timeouts {
                command: options.command_timeout,
                boot: options.boot_timeout,
            },
        );
        let endings = Endings {
            store: store.clone(),
            connections: connections.clone(),
            live_logs: live_logs.clone(),
            queues: queues.clone(),
            wake: wake.clone(),
        };
        let probes = Probes::new(
            store.clone(),
            driver.clone(),
            connections.clone(),
            pause.clone(),
            wake.clone(),
            Arc::new(endings.clone()),
            Rhythm {
                interval: options.probe_interval,
                patience: options.probe_patience,
            },
        );
        let orders = Orders::new(store.clone(), recipes.clone(), wake.clone());
        let gc = Gc::new(
            store.clone(),
            driver.clone(),
            wake.clone(),
            Arc::new(orders.clone()),
            options.template_disk_mib << 20,
            SignedDuration::try_from(options.template_max_age).unwrap_or(SignedDuration::MAX),
        );
        let images = Images::new(driver.clone());
        let mirror_gc = MirrorGc::new(store.clone(), mirrors.clone());
        let limits = SharedLimits::new(limits(options));
        let status = PoolStatus::new(
            store.clone(),
            mirrors.clone(),
            live_logs.clone(),
            memory.clone(),
            probes.clone(),
            gc.clone(),
            limits.clone(),
        );
        let guest_requests = GuestRequests::new(store.clone(), connections.clone());
        let host_keys = builder.host_keys();
        let boots = Actor::new(driver.clone(), builder, pause.clone(), endings, session);
        let egress = Egress::new(store.clone(), driver.clone());
        let pools = Observer::new(
            &boots,
            recipes.clone(),
            set_ups.clone(),
            memory,
            probes.ends().clone(),
            queues.clone(),
            limits.clone(),
        );
        let claims = Claims::new(claims::Parts {
            store: store.clone(),
            driver,
            connections: connections.clone(),
            mirrors: mirrors.clone(),
            recipes,
            set_ups: set_ups.clone(),
            queues: queues.clone(),
            pause: pause.clone(),
            wake: wake.clone(),
            blockers: Arc::new(status.clone()),
            capacity: Arc::new(pools.clone()),
            host_keys,
            guest_requests: guest_requests.clone(),
            egress: egress.clone(),
            keys: Locks::default(),
        });
        let controller = Controller::new(
            store.clone(),
            wake.clone(),
            pools.clone(),
            boots.clone(),
            status.clone(),
            options.control.pulse(),
            options.tick,
        );
        let keep = Keep {
            age: options.events_max_age,
            most: options.most_events,
        };
        let feed = Feed::new(store.clone(), keep);
        let metrics = Metrics::new(
            store.clone(),
            status.clone(),
            gc.clone(),
            feed.clone(),
            pools.schedules().clone(),
            &options.data_dir,
        );
        let keep = KeepHistory {
            age: options.history_max_age,
            bytes: options.history_disk_mib << 20,
        };
        let historian = Historian::new(store.clone(), feed.clone(), servers.clone(), keep);
        let webhooks = Webhooks::new(store.clone(), feed.clone(), servers.clone(), options.webhook_second)?;
        let (audit_log, audit) = audit_log(store.clone(), options.audit_max_age);
        let state = AppState {
            audit: audit_log,
            servers,
            relay,
            webhooks,
            feed,
            metrics: metrics?,
            store,
            wake,
            orders,
            boots,
            pools,
            status,
            gc,
            images,
            mirror_gc,
            connections,
            probes,
            live_logs,
            mirrors,
            command_timeout: options.command_timeout,
            claims,
            pause,
            egress,
            set_ups,
            watch,
            hooks: HookGate::new(options.webhook_secret.clone(), options.requests_per_second),
            git_base_url: options.git_base_url.clone(),
            pace: Pace::new(options.requests_per_second),
            longest_wait: options.longest_claim_wait,
            ports: PortAccess {
                domain: options.ports_domain.clone(),
                links,
                visitors: VisitorLimit::default(),
            },
        };
        Ok(Self {
            state,
            limits,
            controller,
            guest_requests,
            idle,
            audit,
            historian,
            queues,
        })
    }

    /// What takes changed settings over.
    pub fn changes(&self) -> impl Fn(&Changeable) + Send + Sync + use<> {
        let (limits, wake) = (self.limits.clone(), self.state.wake.clone());
        let (pace, hooks) = (self.state.pace.clone(), self.state.hooks.clone());
        move |settings| {
            limits.change(settings);
            pace.change(settings.requests_per_second);
            hooks.change(settings.webhook_secret.clone(), settings.requests_per_second);
            wake.wake();
        }
    }

    /// Starts the background tasks, which run until `stop`; gives what the handlers need, and the tasks.
    pub fn start(self, stop: &CancellationToken) -> (AppState, Vec<JoinHandle<()>>) {
        let Self {
            state,
            limits: _,
            controller,
            guest_requests,
            idle,
            audit,
            historian,
            queues,
        } = self;
        let (gc, probes, watch) = (state.gc.clone(), state.probes.clone(), state.watch.clone());
        let mirror_gc = state.mirror_gc.clone();
        let (gc_stop, probes_stop, watch_stop, stop) = (stop.clone(), stop.clone(), stop.clone(), stop.clone());
        let (mirrors_stop, requests_stop, idle_stop) = (stop.clone(), stop.clone(), stop.clone());
        let (egress, egress_stop) = (state.egress.clone(), stop.clone());
        let (feed, feed_stop) = (state.feed.clone(), stop.clone());
        let history_stop = stop.clone();
        let (webhooks, webhooks_stop) = (state.webhooks.clone(), stop.clone());
        let (metrics, metrics_stop) = (state.metrics.clone(), stop.clone());
        let (servers, servers_stop) = (state.servers.clone(), stop.clone());
        let elsewhere = hear_others(state.store.elsewhere(), state.wake.clone(), queues, stop.clone());
        let tasks = vec![
            tokio::spawn(elsewhere),
            tokio::spawn(async move { servers.run(servers_stop).await }),
            tokio::spawn(async move { gc.run(gc_stop).await }),
            tokio::spawn(async move { mirror_gc.run(mirrors_stop).await }),
            tokio::spawn(async move { probes.run(probes_stop).await }),
            tokio::spawn(async move { watch.run(watch_stop).await }),
            tokio::spawn(async move { guest_requests.run(requests_stop).await }),
            tokio::spawn(async move { idle.run(idle_stop).await }),
            tokio::spawn(async move { egress.run(egress_stop).await }),
            tokio::spawn(async move { feed.run(feed_stop).await }),
            tokio::spawn(async move { historian.run(history_stop).await }),
            tokio::spawn(async move { webhooks.run(webhooks_stop).await }),
            // It ends after the last request: see `AuditLog::end`.
            tokio::spawn(async move { audit.run().await }),
            tokio::spawn(async move { metrics.run(metrics_stop).await }),
            tokio::spawn(doors::e2b::run(state.clone(), stop.clone())),
            tokio::spawn(async move { controller.run(stop).await }),
        ];
        (state, tasks)
    }
}

/// What another server of the store changed wakes this one as its own changes do: the pools' pass, and the claims that wait.
async fn hear_others(elsewhere: Option<Elsewhere>, wake: Wake, queues: Queues, stop: CancellationToken) {
    let Some(mut elsewhere) = elsewhere else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = elsewhere.changed() => {
                wake.wake();
                queues.notify_everyone();
            }
        }
    }
}

fn limits(options: &ServeOptions) -> Limits {
    Limits {
        max_vms: options.max_vms,
        tenant_vms: options.tenant_vms,
        memory_mib: options.memory_mib,
        concurrent_provisions: options.provision_concurrency.max(1),
        concurrent_forks: options.fork_concurrency.max(1),
        tokens: 0,
    }
}
