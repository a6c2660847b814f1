//! Driver `fake`: the contract, and its own planned faults and delays.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use hearth_drivers::{CheckpointKey, Driver, DriverError, VmShape, VmSpec, VmState};
use hearth_guest::{Detach, ExecEnd, ExecSpec};

use crate::contract::{Rig, agent, shell, spec};
use crate::contract_suite;

struct Fake(FakeDriver);

impl Fake {
    fn new(options: FakeOptions) -> Self {
        Self(FakeDriver::new(7, options))
    }

    /// Slow and uneven, as real ones are.
    fn real_life() -> Self {
        let millis = Duration::from_millis;
        Self::new(FakeOptions {
            call_delay: millis(1)..=millis(30),
            boot_delay: millis(50)..=millis(300),
            rules: vec![ExecRule::prints("echo contract", "contract\n")],
            ..FakeOptions::default()
        })
    }
}

#[async_trait]
impl Rig for Fake {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.0.clone())
    }

    fn reopen(&self) -> Arc<dyn Driver> {
        Arc::new(self.0.reopen())
    }

    async fn kill(&self, id: &VmId) {
        assert!(self.0.crash(id));
    }

    fn image(&self) -> String {
        "fake".into()
    }

    fn shape(&self) -> VmShape {
        VmShape {
            vcpus: 1,
            memory_mib: 512,
            disk_gib: 5,
        }
    }

    fn damage(&self, key: &CheckpointKey) {
        assert!(self.0.damage(key));
    }

    async fn finish(&self) {
        assert_eq!(self.0.checkpoints().await.unwrap(), []);
        assert_eq!(self.0.list().await.unwrap(), []);
    }
}

contract_suite!(Fake::real_life());

#[tokio::test(start_paused = true)]
async fn faults_come_when_planned_before_or_after_the_effect() {
    let fault = |call, kind, moment| Fault {
        verb: Verb::Create,
        call,
        kind,
        moment,
    };
    let rig = Fake::new(FakeOptions {
        faults: vec![
            fault(1, FaultKind::Retry, FaultMoment::Before),
            fault(2, FaultKind::Unknown, FaultMoment::After),
        ],
        ..FakeOptions::default()
    });
    let id = VmId::generate();
    let create = || async { rig.0.create(&spec(&rig, &id)).await };
    assert!(matches!(create().await, Err(DriverError::Retry { .. })));
    assert_eq!(rig.0.inspect(&id).await.unwrap(), None);
    assert!(matches!(create().await, Err(DriverError::Unknown { .. })));
    assert_eq!(
        rig.0.inspect(&id).await.unwrap(),
        Some(VmState::Running),
        "unknown: it happened after all"
    );
    create().await.unwrap();
    assert_eq!(rig.0.calls(Verb::Create), 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_host_asks_to_come_again() {
    let rig = Fake::new(FakeOptions {
        capacity: Some(1),
        ..FakeOptions::default()
    });
    let (first, second) = (VmId::generate(), VmId::generate());
    rig.0.create(&spec(&rig, &first)).await.unwrap();
    let wanted = VmSpec {
        id: second,
        ..spec(&rig, &first)
    };
    assert!(matches!(rig.0.create(&wanted).await, Err(DriverError::Retry { .. })));
    rig.0.destroy(&first).await.unwrap();
    rig.0.create(&wanted).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_takes_the_same_time() {
    let run = || async {
        let begin = tokio::time::Instant::now();
        let rig = Fake::real_life();
        let id = VmId::generate();
        rig.0.create(&spec(&rig, &id)).await.unwrap();
        rig.0.list().await.unwrap();
        begin.elapsed()
    };
    let first = run().await;
    assert!(first >= Duration::from_millis(2));
    assert_eq!(first, run().await);
}

#[tokio::test]
async fn the_fake_agent_plays_its_rules_and_remembers() {
    let rig = Fake::new(FakeOptions::default());
    let id = VmId::generate();
    rig.0.create(&spec(&rig, &id)).await.unwrap();
    rig.0.add_rule(ExecRule {
        times: Some(1),
        ..ExecRule::fails("npm ci", 3, "no such package\n")
    });
    let client = agent(&rig.0, &id).await;
    assert_eq!(
        shell(&client, "cd /x && npm ci").await,
        (Some(3), "no such package\n".into())
    );
    assert_eq!(shell(&client, "cd /x && npm ci").await, (Some(0), String::new()));
    client.write_file("/home/.env", 0o600, "A=1").await.unwrap();
    assert_eq!(
        client
            .read_file("/home/.env")
            .await
            .unwrap()
            .collect(100)
            .await
            .unwrap(),
        b"A=1"
    );
    assert_eq!(rig.0.file(&id, "/home/.env").unwrap(), "A=1");
    assert!(client.read_file("/nothing").await.is_err());
    let detach = Some(Detach {
        log_path: "/var/log/x".into(),
        grace_ms: 10,
    });
    let spec = ExecSpec {
        shell: Some("serve".into()),
        detach,
        ..ExecSpec::default()
    };
    let end = client.exec_collect(&spec, 10).await.unwrap().end;
    assert!(matches!(end, ExecEnd::Detached { .. }), "{end:?}");
    rig.0.add_rule(ExecRule {
        takes: Duration::from_secs(3600),
        ..ExecRule::prints("sleep", "")
    });
    let spec = ExecSpec {
        shell: Some("sleep".into()),
        timeout_ms: Some(20),
        ..ExecSpec::default()
    };
    let end = client.exec_collect(&spec, 10).await.unwrap().end;
    assert!(matches!(end, ExecEnd::TimedOut { .. }), "{end:?}");
    client.set_clock(std::time::SystemTime::now()).await.unwrap();
    assert!(rig.0.clock(&id).is_some());
    assert_eq!(rig.0.commands(&id).len(), 4);
}
