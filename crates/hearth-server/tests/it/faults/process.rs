//! A server that can die as by `kill -9`: it runs on a runtime of its own, and when the fault strikes, that is dropped with
//! every task. The fake driver's VMs outlive it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::FakeDriver;
use hearth_server::{Address, ServeError, ServeOptions, WriteFaults, serve_with};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::harness::pause;

pub struct Process {
    pub address: SocketAddr,
    /// It is dead, or dies now.
    pub killed: CancellationToken,
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl Process {
    /// Starts a server, again and again until it listens, as the host's service manager would.
    pub async fn start(mut options: ServeOptions, world: &FakeDriver, writes: &WriteFaults) -> Self {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let driver = world.reopen();
            let (killed, stop) = (driver.killed(), CancellationToken::new());
            options.write_faults = Some(writes.of_server(killed.clone()));
            let (ready, address) = oneshot::channel();
            let (over, ended) = oneshot::channel();
            let fault = Arc::new(Mutex::new(None));
            std::thread::spawn({
                let (options, killed, stop) = (options.clone(), killed.clone(), stop.clone());
                let fault = Arc::clone(&fault);
                move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    let end = runtime.block_on(live(options, driver, ready, killed, stop));
                    *fault.lock().unwrap() = end.err();
                    // Here every task ends that is left.
                    drop(runtime);
                    let _ = over.send(());
                }
            });
            match address.await {
                Ok(address) => {
                    return Self {
                        address,
                        killed,
                        stop,
                        ended,
                    };
                }
                // The fault struck before it listened, or a git that is being started here still has the lock's descriptor.
                Err(_) => gone(ended, &options.data_dir).await,
            }
            let fault = fault.lock().unwrap().take();
            assert!(
                tokio::time::Instant::now() < deadline,
                "the server does not start: {fault:?}"
            );
            pause().await;
        }
    }

    /// Waits until a server that was killed is gone with all that it held.
    pub async fn buried(self, data_dir: &Path) {
        gone(self.ended, data_dir).await;
    }

    /// Ends a server in good order.
    pub async fn stop(self, data_dir: &Path) {
        self.stop.cancel();
        gone(self.ended, data_dir).await;
    }
}

async fn live(
    options: ServeOptions,
    driver: FakeDriver,
    ready: oneshot::Sender<SocketAddr>,
    killed: CancellationToken,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let say = |addresses: &[Address]| {
        let _ = ready.send(addresses[0].tcp().unwrap());
    };
    let serving = serve_with(&options, move |_| Ok(driver), say, stop);
    tokio::select! {
        biased;
        () = killed.cancelled() => Ok(()),
        end = serving => end,
    }
}

/// The database's own threads may still be at their last statement.
async fn gone(ended: oneshot::Receiver<()>, data_dir: &Path) {
    let _ = ended.await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while has_open(&data_dir.join("hearth.db")) {
        assert!(tokio::time::Instant::now() < deadline, "the database is still open");
        pause().await;
    }
}

fn has_open(file: &Path) -> bool {
    let file = file.canonicalize();
    let Ok(file) = file else { return false };
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .any(|open| open == file)
}
