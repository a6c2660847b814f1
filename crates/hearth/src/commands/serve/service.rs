//! A server as a service: sockets that the service manager has opened, what it is told, the watchdog, and signals.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_server::{Control, Listen, Listener};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Complete};
use crate::failure::Failure;

/// So often within the time that the watchdog allows.
const BEATS: u32 = 3;
/// The settings that a running server takes over; the others need a restart.
const CHANGEABLE: [&str; 5] = [
    "max-vms",
    "max-vms-per-tenant",
    "provision-concurrency",
    "requests-per-second",
    "webhook-secret-file",
];

/// The sockets that the service manager has opened for this process.
pub(super) fn open_sockets() -> Result<Vec<Listen>, Failure> {
    let mut given = ListenFd::from_env();
    let failed = |error| Failure::new(format!("a socket of the service manager cannot be used: {error}"));
    let mut open = Vec::new();
    for index in 0..given.len() {
        // It is of one of the two kinds; what is of neither is said.
        let listener = match given.take_unix_listener(index) {
            Ok(Some(listener)) => Some(Listener::Unix(listener, None)),
            Ok(None) | Err(_) => given.take_tcp_listener(index).map_err(failed)?.map(Listener::Tcp),
        };
        open.extend(listener.map(|listener| Listen::Open(Arc::new(listener))));
    }
    Ok(open)
}

/// Tells the service manager, if there is one.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told how the server is");
    }
}

/// Requests are answered.
pub(super) fn tell_ready(addresses: &str) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("listening on {addresses}")),
    ]);
}

/// Tells the watchdog for as long as the pools' loop works: a server whose loop hangs is ended and started again, and its VMs
/// keep running.
pub(super) fn keep_watchdog(control: &Control) {
    let Some(allowed) = sd_notify::watchdog_enabled() else {
        return;
    };
    let pulse = control.pulse();
    tokio::spawn(async move {
        let mut beat = tokio::time::interval((allowed / BEATS).max(Duration::from_millis(1)));
        loop {
            beat.tick().await;
            let age = pulse.age();
            if age < allowed {
                tell(&[NotifyState::Watchdog]);
            } else {
                tracing::error!(
                    seconds = age.as_secs(),
                    "the pools' loop makes no steps any more: the watchdog is not told that all is well"
                );
            }
        }
    });
}

/// SIGTERM and Ctrl-C stop the server; SIGHUP makes it read its settings again.
pub(super) fn on_signals(shutdown: CancellationToken, reload: Reload) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be received: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let hangup = listen(SignalKind::hangup())?;
    // A terminal that was closed sends it too: who started the server there has gone.
    let is_stopped_by_hangup = std::io::stderr().is_terminal();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = reload.at_each(hangup, is_stopped_by_hangup) => {}
        }
        tell(&[NotifyState::Stopping]);
        tracing::info!("stopping; VMs keep running");
        shutdown.cancel();
    });
    Ok(())
}

/// What a reload needs.
pub(super) struct Reload {
    pub(super) control: Control,
    pub(super) started: Complete,
    pub(super) data_dir: PathBuf,
}

impl Reload {
    async fn at_each(mut self, mut hangup: Signal, stop: bool) {
        let mut now = self.started.effective.clone();
        while hangup.recv().await.is_some() {
            if stop {
                return;
            }
            let clock = NotifyState::monotonic_usec_now().ok();
            tell(&std::iter::once(NotifyState::Reloading).chain(clock).collect::<Vec<_>>());
            match self.reload(&now) {
                Ok(next) => now = next,
                Err(failure) => {
                    tracing::error!(
                        "the settings were read again and not taken over: {}",
                        failure.in_one_line()
                    );
                }
            }
            tell(&[NotifyState::Ready]);
        }
        // Nothing sends this signal any more.
        std::future::pending::<()>().await;
    }

    fn reload(&mut self, now: &config::Effective) -> Result<config::Effective, Failure> {
        let next = config::complete(self.started.args.config.as_deref())?;
        let mut options = super::options(&next.args, self.data_dir.clone());
        options.webhook_secret = super::webhook_secret(&next.args)?;
        self.control.change(options.changeable()).map_err(Failure::new)?;
        let is_live = |name: &String| CHANGEABLE.contains(&name.as_str());
        let taken: Vec<String> = next.effective.changed(now).into_iter().filter(is_live).collect();
        let waiting = next.effective.changed(&self.started.effective);
        let waiting: Vec<String> = waiting.into_iter().filter(|name| !is_live(name)).collect();
        tracing::info!(changed = taken.join(", "), "the settings were read again");
        if !waiting.is_empty() {
            tracing::warn!(
                settings = waiting.join(", "),
                "these have changed, and hold after a restart of the server"
            );
        }
        Ok(next.effective)
    }
}
