//! What every driver promises about checkpoints, forks and pausing. Part of the contract suite.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::egress::{EgressMode, EgressPolicy};
use hearth_api::ids::VmId;
use hearth_drivers::{
    CheckDepth, CheckpointFault, CheckpointKey, CheckpointSpec, Driver, DriverError, Egress, ForkPurpose, ForkSpec,
    ForkStart, SnapshotSpec, VmShape, VmSpec, VmState,
};
use hearth_guest::client::AgentClient;

use crate::contract::{Rig, agent, spec};

/// A paused VM must not answer for this long; one that runs does so much sooner.
const SILENCE: Duration = Duration::from_millis(700);
/// A guest that has booted is idle within this time.
const IDLE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(60);

pub(crate) fn key(text: &str) -> CheckpointKey {
    text.repeat(32).parse().unwrap()
}

pub(crate) fn freeze(key: &CheckpointKey, parent: Option<&CheckpointKey>) -> CheckpointSpec {
    CheckpointSpec {
        key: key.clone(),
        parent: parent.cloned(),
        labels: BTreeMap::from([("step".to_owned(), "a step".to_owned())]),
        idle: IDLE,
    }
}

pub(crate) fn snapshot(key: &CheckpointKey, kept: bool) -> SnapshotSpec {
    SnapshotSpec {
        key: key.clone(),
        labels: BTreeMap::from([("owner".to_owned(), "a task".to_owned())]),
        kept,
    }
}

pub(crate) fn fork(id: &VmId, from: &CheckpointKey, purpose: ForkPurpose, start: ForkStart) -> ForkSpec {
    ForkSpec {
        id: id.clone(),
        from: from.clone(),
        purpose,
        shape: None,
        start,
    }
}

/// A booted VM that can be frozen.
pub(crate) async fn freezable(rig: &(impl Rig + ?Sized)) -> (VmId, AgentClient) {
    let (driver, id) = (rig.driver(), VmId::generate());
    let wanted = VmSpec {
        checkpointable: true,
        ..spec(rig, &id)
    };
    driver.create(&wanted).await.unwrap();
    let client = agent(&*driver, &id).await;
    (id, client)
}

async fn write(client: &AgentClient, path: &str, text: &str) {
    client.write_file(path, 0o644, text.to_owned()).await.unwrap();
}

async fn read(client: &AgentClient, path: &str) -> Option<String> {
    let file = client.read_file(path).await.ok()?;
    Some(String::from_utf8(file.collect(1000).await.unwrap()).unwrap())
}

async fn state(driver: &dyn Driver, id: &VmId) -> Option<VmState> {
    let state = driver.inspect(id).await.unwrap();
    let listed = driver.list().await.unwrap();
    assert_eq!(listed.iter().find(|vm| vm.id == *id).map(|vm| vm.state), state);
    state
}

fn is_permanent<T: std::fmt::Debug>(result: &Result<T, DriverError>) -> bool {
    matches!(result, Err(DriverError::Permanent { .. }))
}

pub(crate) async fn a_paused_vm_stands_still_and_goes_on(rig: &impl Rig) {
    let (driver, id) = (rig.driver(), VmId::generate());
    assert!(is_permanent(&driver.pause(&id).await) && is_permanent(&driver.resume(&id).await));
    assert!(is_permanent(&driver.usage(&id).await));
    driver.create(&spec(rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    driver.resume(&id).await.expect("a running VM goes on");
    for _ in 0..2 {
        driver.pause(&id).await.unwrap();
        assert_eq!(state(&*driver, &id).await, Some(VmState::Paused));
    }
    // The next server sees it so too, and it is the same VM.
    assert_eq!(state(&*rig.reopen(), &id).await, Some(VmState::Paused));
    driver.create(&spec(rig, &id)).await.unwrap();
    assert_eq!(state(&*driver, &id).await, Some(VmState::Paused));
    let asked = client.health();
    assert!(
        tokio::time::timeout(SILENCE, asked).await.is_err(),
        "a paused VM answers"
    );
    for _ in 0..2 {
        driver.resume(&id).await.unwrap();
        assert_eq!(state(&*driver, &id).await, Some(VmState::Running));
    }
    // The stream that was open lasts.
    tokio::time::timeout(SOON, client.health()).await.unwrap().unwrap();
    let usage = driver.usage(&id).await.unwrap();
    assert!(
        usage.private_bytes > 0 && usage.shared_bytes > 0 && usage.disk_bytes > 0,
        "{usage:?}"
    );
    // A paused one can be killed, noticed and removed like any other.
    driver.pause(&id).await.unwrap();
    rig.kill(&id).await;
    assert_eq!(state(&*driver, &id).await, Some(VmState::Stopped));
    assert!(is_permanent(&driver.pause(&id).await) && is_permanent(&driver.resume(&id).await));
    assert!(is_permanent(&driver.usage(&id).await));
    driver.destroy(&id).await.unwrap();
}

pub(crate) async fn forks_go_on_from_the_checkpoint_and_are_apart(rig: &impl Rig) {
    let driver = rig.driver();
    let (base, client) = freezable(rig).await;
    write(&client, "/root/before", "before").await;
    let template = key("aa");
    let info = driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    assert_eq!((info.key.clone(), info.parent.clone()), (template.clone(), None));
    assert_eq!((info.shape, info.labels["step"].as_str()), (rig.shape(), "a step"));
    assert!(info.image.starts_with(&rig.image()) && info.bytes > 0);
    let environment = driver.environment(Some(&rig.image()), rig.shape()).await.unwrap();
    assert_eq!(info.environment, environment);
    let other = VmShape {
        memory_mib: rig.shape().memory_mib + 256,
        ..rig.shape()
    };
    assert_ne!(
        driver.environment(Some(&rig.image()), other).await.unwrap(),
        environment
    );

    // The VM continues, on the stream it had; what it does now is not in the checkpoint.
    assert_eq!(state(&*driver, &base).await, Some(VmState::Running));
    write(&client, "/root/after", "after").await;
    let again = driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    assert_eq!(again, info, "asked again, it is kept");
    let next = rig.reopen();
    assert_eq!(next.checkpoints().await.unwrap(), std::slice::from_ref(&info));
    next.check_checkpoint(&template, CheckDepth::Quick).await.unwrap();
    next.check_checkpoint(&template, CheckDepth::Full).await.unwrap();
    driver.destroy(&base).await.unwrap();

    // Many at once, whose base is gone.
    let ids: Vec<VmId> = (0..3).map(|_| VmId::generate()).collect();
    let forks = ids.iter().map(|id| async {
        let wanted = fork(id, &template, ForkPurpose::Instance, ForkStart::Paused);
        let made = driver.fork(&wanted).await.unwrap();
        assert_eq!(driver.fork(&wanted).await.unwrap(), made, "one id is one VM");
        assert_eq!(made.image, info.image);
    });
    futures::future::join_all(forks).await;
    for id in &ids {
        assert_eq!(state(&*driver, id).await, Some(VmState::Paused));
        driver.resume(id).await.unwrap();
        let client = agent(&*driver, id).await;
        assert_eq!(read(&client, "/root/before").await.as_deref(), Some("before"));
        assert_eq!(read(&client, "/root/after").await, None);
        write(&client, "/root/own", id.as_str()).await;
    }
    // One more after they have written: it sees nothing of that.
    let late = VmId::generate();
    let wanted = fork(&late, &template, ForkPurpose::Instance, ForkStart::Running);
    driver.fork(&wanted).await.unwrap();
    assert_eq!(state(&*driver, &late).await, Some(VmState::Running));
    let client = agent(&*driver, &late).await;
    assert_eq!(read(&client, "/root/own").await, None);
    driver.check_checkpoint(&template, CheckDepth::Full).await.unwrap();
    let used = driver.checkpoints().await.unwrap()[0].last_used;
    assert!(used > info.last_used, "{used} {info:?}");

    // An instance cannot be frozen.
    assert!(is_permanent(
        &driver.checkpoint(&late, &freeze(&key("bb"), Some(&template))).await
    ));
    assert!(matches!(
        driver.remove_checkpoint(&template).await,
        Err(DriverError::Retry { .. })
    ));
    for id in ids.iter().chain([&late]) {
        driver.destroy(id).await.unwrap();
    }
    driver.remove_checkpoint(&template).await.unwrap();
    driver
        .remove_checkpoint(&template)
        .await
        .expect("removing twice is no error");
}

pub(crate) async fn a_fork_can_be_frozen_again_and_what_lies_below_stays(rig: &impl Rig) {
    let driver = rig.driver();
    let (base, client) = freezable(rig).await;
    let (first, second, third) = (key("a1"), key("a2"), key("a3"));
    write(&client, "/root/1", "one").await;
    driver.checkpoint(&base, &freeze(&first, None)).await.unwrap();
    // The same VM once more.
    write(&client, "/root/2", "two").await;
    assert!(
        is_permanent(&driver.checkpoint(&base, &freeze(&second, None)).await),
        "a mix-up of parents is noticed"
    );
    driver.checkpoint(&base, &freeze(&second, Some(&first))).await.unwrap();
    driver.destroy(&base).await.unwrap();
    drop(client);
    // And a fork of that.
    let build = VmId::generate();
    let wanted = fork(&build, &second, ForkPurpose::Build, ForkStart::Running);
    driver.fork(&wanted).await.unwrap();
    let client = agent(&*driver, &build).await;
    assert_eq!(read(&client, "/root/2").await.as_deref(), Some("two"));
    write(&client, "/root/3", "three").await;
    let info = driver.checkpoint(&build, &freeze(&third, Some(&second))).await.unwrap();
    assert_eq!(info.parent, Some(second.clone()));
    driver.destroy(&build).await.unwrap();

    let instance = VmId::generate();
    let wanted = fork(&instance, &third, ForkPurpose::Instance, ForkStart::Running);
    driver.fork(&wanted).await.unwrap();
    let client = agent(&*driver, &instance).await;
    for (path, text) in [("/root/1", "one"), ("/root/2", "two"), ("/root/3", "three")] {
        assert_eq!(read(&client, path).await.as_deref(), Some(text));
    }
    driver.destroy(&instance).await.unwrap();
    let keys: Vec<CheckpointKey> = driver
        .checkpoints()
        .await
        .unwrap()
        .into_iter()
        .map(|info| info.key)
        .collect();
    assert_eq!(keys, [first.clone(), second.clone(), third.clone()]);
    for below in [&first, &second] {
        assert!(matches!(
            driver.remove_checkpoint(below).await,
            Err(DriverError::Retry { .. })
        ));
    }
    for from_the_top in [&third, &second, &first] {
        driver.remove_checkpoint(from_the_top).await.unwrap();
    }
}

pub(crate) async fn what_cannot_be_frozen_or_forked_is_said_so(rig: &impl Rig) {
    let (driver, id, missing) = (rig.driver(), VmId::generate(), key("0c"));
    assert!(is_permanent(&driver.checkpoint(&id, &freeze(&missing, None)).await));
    let wanted = fork(&id, &missing, ForkPurpose::Instance, ForkStart::Paused);
    let error = driver.fork(&wanted).await.unwrap_err();
    let fault = CheckpointFault::Missing { key: missing.clone() };
    assert_eq!(error.checkpoint_fault(), Some(&fault), "{error:?}");
    let error = driver.check_checkpoint(&missing, CheckDepth::Full).await.unwrap_err();
    assert_eq!(error.checkpoint_fault(), Some(&fault), "{error:?}");
    driver.remove_checkpoint(&missing).await.unwrap();
    assert!(is_permanent(
        &driver.environment(Some("no-such-image"), rig.shape()).await
    ));

    driver.create(&spec(rig, &id)).await.unwrap();
    assert!(
        is_permanent(&driver.checkpoint(&id, &freeze(&missing, None)).await),
        "it was not made to be frozen"
    );
    assert_eq!(state(&*driver, &id).await, Some(VmState::Running));
    rig.kill(&id).await;
    driver.destroy(&id).await.unwrap();
    assert_eq!(driver.checkpoints().await.unwrap(), []);
}

pub(crate) async fn a_damaged_checkpoint_is_never_used(rig: &impl Rig) {
    let driver = rig.driver();
    let (base, _client) = freezable(rig).await;
    let template = key("dd");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    let id = VmId::generate();
    let wrong_size = ForkSpec {
        shape: Some(VmShape {
            memory_mib: rig.shape().memory_mib * 2,
            ..rig.shape()
        }),
        ..fork(&id, &template, ForkPurpose::Instance, ForkStart::Running)
    };
    assert!(is_permanent(&driver.fork(&wrong_size).await));
    assert_eq!(driver.inspect(&id).await.unwrap(), None, "nothing is left");
    rig.damage(&template);
    let is_damage = |error: &DriverError| matches!(error.checkpoint_fault(), Some(CheckpointFault::Damaged { .. }));
    for purpose in [ForkPurpose::Instance, ForkPurpose::Build] {
        let error = driver
            .fork(&fork(&id, &template, purpose, ForkStart::Running))
            .await
            .unwrap_err();
        assert!(is_damage(&error), "{error:?}");
        assert_eq!(driver.inspect(&id).await.unwrap(), None, "nothing is left");
    }
    let error = driver.check_checkpoint(&template, CheckDepth::Quick).await.unwrap_err();
    assert!(is_damage(&error), "{error:?}");
    // Removed, it can be made again; it is still the parent of the VM that was frozen, so that goes first.
    driver.destroy(&base).await.unwrap();
    driver.remove_checkpoint(&template).await.unwrap();
}

pub(crate) async fn a_vm_in_use_is_forked_and_continues(rig: &impl Rig) {
    let driver = rig.driver();
    let none = VmId::generate();
    assert!(is_permanent(
        &driver.snapshot(&none, &snapshot(&key("e0"), false)).await
    ));
    let (base, client) = freezable(rig).await;
    let (template, first, second, third) = (key("e1"), key("e2"), key("e3"), key("e4"));
    write(&client, "/root/base", "base").await;
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    driver.destroy(&base).await.unwrap();
    drop(client);
    let parent = VmId::generate();
    let wanted = fork(&parent, &template, ForkPurpose::Instance, ForkStart::Running);
    driver.fork(&wanted).await.unwrap();
    let client = agent(&*driver, &parent).await;
    write(&client, "/root/1", "one").await;

    let info = driver.snapshot(&parent, &snapshot(&first, false)).await.unwrap();
    assert_eq!((&info.key, &info.parent), (&first, &Some(template.clone())));
    assert_eq!((info.shape, info.labels["owner"].as_str()), (rig.shape(), "a task"));
    assert_eq!(state(&*driver, &parent).await, Some(VmState::Running));
    // On the stream it had, and what it does now is not in the checkpoint.
    write(&client, "/root/2", "two").await;
    let again = driver.snapshot(&parent, &snapshot(&first, false)).await.unwrap();
    assert_eq!(again, info, "asked again, it is kept");
    let info = driver.snapshot(&parent, &snapshot(&second, true)).await.unwrap();
    assert_eq!(info.parent, Some(first.clone()));
    for key in [&first, &second] {
        driver.check_checkpoint(key, CheckDepth::Full).await.unwrap();
    }
    // A paused one stays paused.
    driver.pause(&parent).await.unwrap();
    let above = key("e6");
    for key in [&third, &above] {
        driver.snapshot(&parent, &snapshot(key, false)).await.unwrap();
        assert_eq!(state(&*driver, &parent).await, Some(VmState::Paused));
    }
    driver.resume(&parent).await.unwrap();
    write(&client, "/root/own", "parent").await;

    let mut forks = Vec::new();
    for (from, has_two) in [
        (&first, false),
        (&first, false),
        (&second, true),
        (&third, true),
        (&above, true),
    ] {
        let id = VmId::generate();
        let wanted = fork(&id, from, ForkPurpose::Instance, ForkStart::Running);
        driver.fork(&wanted).await.unwrap();
        let client = agent(&*driver, &id).await;
        for (path, text) in [("/root/base", "base"), ("/root/1", "one")] {
            assert_eq!(read(&client, path).await.as_deref(), Some(text));
        }
        assert_eq!(read(&client, "/root/2").await.is_some(), has_two);
        assert_eq!(read(&client, "/root/own").await, None);
        write(&client, "/root/own", id.as_str()).await;
        forks.push(id);
    }
    assert_eq!(read(&client, "/root/own").await.as_deref(), Some("parent"));
    let build = fork(&none, &first, ForkPurpose::Build, ForkStart::Running);
    assert!(is_permanent(&driver.fork(&build).await), "it is not built on");
    // A fork of a fork.
    let (last, below) = (VmId::generate(), key("e5"));
    let info = driver.snapshot(&forks[0], &snapshot(&below, false)).await.unwrap();
    assert_eq!(info.parent, Some(first.clone()));
    let wanted = fork(&last, &below, ForkPurpose::Instance, ForkStart::Running);
    driver.fork(&wanted).await.unwrap();
    let of_last = agent(&*driver, &last).await;
    assert_eq!(read(&of_last, "/root/own").await.as_deref(), Some(forks[0].as_str()));

    // What is below stays for as long as it is needed.
    driver.destroy(&parent).await.unwrap();
    for key in [&template, &first, &second, &third, &below, &above] {
        let removed = driver.remove_checkpoint(key).await;
        assert!(matches!(removed, Err(DriverError::Retry { .. })), "{key}: {removed:?}");
    }
    for id in forks.iter().chain([&last]) {
        driver.destroy(id).await.unwrap();
    }
    for from_the_top in [&below, &above, &third, &second, &first, &template] {
        driver.remove_checkpoint(from_the_top).await.unwrap();
    }
}

pub(crate) async fn a_vm_is_held_to_a_policy_until_another_one_and_a_fork_to_none(rig: &impl Rig) {
    let driver = rig.driver();
    let nobody = VmId::generate();
    let list = EgressPolicy {
        mode: EgressMode::Allow,
        hosts: vec!["*.example.org".try_into().unwrap()],
        cidrs: vec!["203.0.113.0/24".try_into().unwrap()],
    };
    assert!(is_permanent(&driver.egress(&nobody).await) && is_permanent(&driver.hold_egress(&nobody, &list).await));
    let (id, client) = freezable(rig).await;
    assert_eq!(driver.egress(&id).await.unwrap(), Egress::default());
    for policy in [&list, &list, &EgressPolicy::default(), &list] {
        driver.hold_egress(&id, policy).await.unwrap();
        assert_eq!(driver.egress(&id).await.unwrap().policy, *policy);
    }
    // The next server finds it so, and in a paused VM it can be changed too.
    assert_eq!(rig.reopen().egress(&id).await.unwrap().policy, list);
    let key = key("e");
    driver.checkpoint(&id, &freeze(&key, None)).await.unwrap();
    let copy = VmId::generate();
    let spec = fork(&copy, &key, ForkPurpose::Instance, ForkStart::Paused);
    driver.fork(&spec).await.unwrap();
    assert_eq!(driver.egress(&copy).await.unwrap(), Egress::default());
    driver.hold_egress(&copy, &list).await.unwrap();
    assert_eq!(driver.egress(&copy).await.unwrap().policy, list);
    drop(client);
    for vm in [&copy, &id] {
        driver.destroy(vm).await.unwrap();
    }
    assert!(is_permanent(&driver.egress(&id).await));
    driver.remove_checkpoint(&key).await.unwrap();
}
