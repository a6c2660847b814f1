//! What every driver promises. The same code runs against all of them: the fake passes what the real ones pass, or it lies.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::ids::VmId;
use hearth_drivers::{CheckpointKey, Driver, DriverError, VmShape, VmSpec, VmState};
use hearth_guest::client::AgentClient;
use hearth_guest::{ExecEnd, ExecSpec};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::support::eventually;

/// A guest without hardware virtualisation on a busy machine needs about 15 s to its agent.
const BOOT: Duration = Duration::from_secs(180);
/// For what happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A driver on an empty host, and what a test may do to it from the outside.
#[async_trait]
pub(crate) trait Rig: Send + Sync {
    fn driver(&self) -> Arc<dyn Driver>;
    /// Another driver on the same VMs, as a restarted server opens it.
    fn reopen(&self) -> Arc<dyn Driver>;
    /// `kill -9` of the VM's process.
    async fn kill(&self, id: &VmId);
    fn image(&self) -> String;
    fn shape(&self) -> VmShape;
    /// What a VM's console shows of its boot, at least.
    fn console_says(&self) -> &'static str {
        "Linux version"
    }
    /// Changes a file of a checkpoint behind the driver's back.
    fn damage(&self, key: &CheckpointKey);
    /// Ends everything and panics when something of a VM is left.
    async fn finish(&self);
}

pub(crate) fn spec(rig: &(impl Rig + ?Sized), id: &VmId) -> VmSpec {
    VmSpec {
        id: id.clone(),
        image: Some(rig.image()),
        shape: rig.shape(),
        checkpointable: false,
    }
}

/// A session with the agent; waits for the guest to boot.
pub(crate) async fn agent(driver: &dyn Driver, id: &VmId) -> AgentClient {
    let stream = driver.connect(id).await.unwrap();
    match AgentClient::connect(stream, Instant::now() + BOOT).await {
        Ok(client) => client,
        Err(error) => {
            let console = driver.console(id, 4000).await.unwrap_or_default();
            panic!("no agent: {error}; console:\n{}", String::from_utf8_lossy(&console));
        }
    }
}

/// Runs a shell text in the VM; gives its exit code and what it printed.
pub(crate) async fn shell(agent: &AgentClient, text: &str) -> (Option<i32>, String) {
    let spec = ExecSpec {
        shell: Some(text.into()),
        timeout_ms: Some(60_000),
        ..ExecSpec::default()
    };
    let output = agent.exec_collect(&spec, 1024 * 1024).await.unwrap();
    let printed = [output.stdout, output.stderr].concat();
    match output.end {
        ExecEnd::Exited { code, .. } => (code, String::from_utf8_lossy(&printed).into_owned()),
        other => panic!("{text}: {other:?}"),
    }
}

async fn states(driver: &dyn Driver) -> Vec<(VmId, VmState)> {
    driver
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|vm| (vm.id, vm.state))
        .collect()
}

pub(crate) async fn a_vm_lives_is_found_again_and_leaves_nothing(rig: &impl Rig) {
    let driver = rig.driver();
    let id = VmId::generate();
    let created = driver.create(&spec(rig, &id)).await.unwrap();
    assert!(
        created.image.starts_with(&rig.image()),
        "the full digest of the image, not {created:?}"
    );
    assert_eq!(driver.inspect(&id).await.unwrap(), Some(VmState::Running));
    assert_eq!(states(&*driver).await, [(id.clone(), VmState::Running)]);

    let client = agent(&*driver, &id).await;
    let health = client.health().await.unwrap();
    assert_eq!(shell(&client, "echo contract").await, (Some(0), "contract\n".into()));
    let console = driver.console(&id, 1024 * 1024).await.unwrap();
    assert!(
        String::from_utf8_lossy(&console).contains(rig.console_says()),
        "the console holds the log of the boot"
    );
    assert_eq!(driver.console(&id, 10).await.unwrap().len(), 10);

    // A second stream ends the first and works at once.
    let second = agent(&*driver, &id).await;
    tokio::time::timeout(SOON, client.closed())
        .await
        .expect("the first session ends");
    assert_eq!(second.health().await.unwrap().boot_id, health.boot_id);
    drop(second);

    // Asked again, it is the same VM, still running.
    assert_eq!(driver.create(&spec(rig, &id)).await.unwrap(), created);
    let third = agent(&*driver, &id).await;
    assert_eq!(third.health().await.unwrap().boot_id, health.boot_id);
    drop(third);
    drop(driver);

    // The next server finds it.
    let next = rig.reopen();
    assert_eq!(states(&*next).await, [(id.clone(), VmState::Running)]);
    let adopted = agent(&*next, &id).await;
    assert_eq!(adopted.health().await.unwrap().boot_id, health.boot_id);
    next.destroy(&id).await.unwrap();
    tokio::time::timeout(SOON, adopted.closed())
        .await
        .expect("the session ends with the VM");
    assert_eq!(next.inspect(&id).await.unwrap(), None);
    assert_eq!(states(&*next).await, []);
    next.destroy(&id).await.expect("destroying twice is no error");
}

pub(crate) async fn a_killed_vm_is_noticed_and_can_be_made_anew(rig: &impl Rig) {
    let driver = rig.driver();
    let id = VmId::generate();
    driver.create(&spec(rig, &id)).await.unwrap();
    let mut stream = driver.connect(&id).await.unwrap();
    rig.kill(&id).await;
    eventually("the killed VM is stopped", SOON, || async {
        (driver.inspect(&id).await.unwrap() == Some(VmState::Stopped)).then_some(())
    })
    .await;
    assert_eq!(states(&*driver).await, [(id.clone(), VmState::Stopped)]);
    let idle = tokio::time::timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
    drop(idle.expect("the stream ends with the VM"));
    assert!(matches!(
        driver.connect(&id).await.err(),
        Some(DriverError::Permanent { .. })
    ));
    driver.create(&spec(rig, &id)).await.unwrap();
    assert_eq!(driver.inspect(&id).await.unwrap(), Some(VmState::Running));
    rig.kill(&id).await;
    rig.reopen().destroy(&id).await.unwrap();
    assert_eq!(driver.inspect(&id).await.unwrap(), None);
}

pub(crate) async fn what_does_not_exist_is_said_so(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    assert_eq!(driver.inspect(&id).await.unwrap(), None);
    assert_eq!(states(&*driver).await, []);
    driver.destroy(&id).await.expect("destroying nothing is no error");
    assert!(matches!(
        driver.connect(&id).await.err(),
        Some(DriverError::Permanent { .. })
    ));
    assert!(matches!(
        driver.console(&id, 100).await,
        Err(DriverError::Permanent { .. })
    ));
}

pub(crate) async fn the_impossible_is_permanent(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    let good = spec(rig, &id);
    let refused = |spec: VmSpec| {
        let driver = driver.clone();
        async move {
            let error = driver.create(&spec).await.expect_err("must be refused");
            assert!(matches!(error, DriverError::Permanent { .. }), "{error:?}");
            assert_eq!(driver.inspect(&spec.id).await.unwrap(), None, "nothing is left");
        }
    };
    refused(VmSpec {
        image: Some("no-such-image".into()),
        ..good.clone()
    })
    .await;
    refused(VmSpec {
        image: Some(String::new()),
        ..good.clone()
    })
    .await;
    refused(VmSpec {
        shape: VmShape { vcpus: 0, ..good.shape },
        ..good.clone()
    })
    .await;
    refused(VmSpec {
        shape: VmShape {
            memory_mib: 0,
            ..good.shape
        },
        ..good.clone()
    })
    .await;
    refused(VmSpec {
        shape: VmShape {
            disk_gib: 0,
            ..good.shape
        },
        ..good.clone()
    })
    .await;
}

pub(crate) async fn one_id_is_one_vm_however_often_it_is_asked_for(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    let wanted = spec(rig, &id);
    let results = futures::future::join_all((0..4).map(|_| driver.create(&wanted))).await;
    for result in results {
        result.unwrap();
    }
    assert_eq!(states(&*driver).await, [(id.clone(), VmState::Running)]);
    let ends = futures::future::join_all((0..4).map(|_| driver.destroy(&id))).await;
    for end in ends {
        end.unwrap();
    }
    assert_eq!(states(&*driver).await, []);
}

pub(crate) async fn destroying_while_creating_ends_with_nothing(rig: &impl Rig) {
    let driver = rig.driver();
    for delay in [0, 10, 60, 150] {
        let id = VmId::generate();
        let wanted = spec(rig, &id);
        let end = async {
            // the moment of a disturbance
            tokio::time::sleep(Duration::from_millis(delay)).await;
            driver.destroy(&id).await
        };
        let (made, ended) = tokio::join!(driver.create(&wanted), end);
        ended.unwrap();
        // Whichever came last has won; both are whole states.
        let state = driver.inspect(&id).await.unwrap();
        assert!(
            state.is_none() || (made.is_ok() && state == Some(VmState::Running)),
            "{made:?} {state:?}"
        );
        driver.destroy(&id).await.unwrap();
        assert_eq!(driver.inspect(&id).await.unwrap(), None);
    }
}

pub(crate) async fn a_caller_who_gives_up_leaves_no_pieces(rig: &impl Rig) {
    let driver = rig.driver();
    for patience in [0, 5, 40, 120] {
        let id = VmId::generate();
        let wanted = spec(rig, &id);
        drop(tokio::time::timeout(Duration::from_millis(patience), driver.create(&wanted)).await);
        driver.destroy(&id).await.unwrap();
        assert_eq!(driver.inspect(&id).await.unwrap(), None);
    }
    assert_eq!(states(&*driver).await, []);
}

pub(crate) use crate::contract_forks::*;
pub(crate) use crate::contract_save::*;
