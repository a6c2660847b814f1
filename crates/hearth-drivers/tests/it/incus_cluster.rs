//! Driver `incus` on a cluster of three: where VMs and checkpoints are, what is said of a member that is lost, and what is left over.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::incus::{IncusAddress, IncusDriver, IncusOptions, IncusSettings, IncusTls};
use hearth_drivers::{Driver, DriverError, ForkPurpose, ForkStart, VmState};
use hearth_image::Stores;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::contract::{Rig, agent, spec};
use crate::contract_forks::{fork, freezable, freeze, key};
use crate::incus::Incus;
use crate::incus_daemon::{POOL, address, base64};
use crate::support::eventually;

/// A member is given up after 11 s without a sign of it, which the others look for every 10 s.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// A daemon that was started again is in the cluster again.
const BACK: Duration = Duration::from_secs(60);

impl Incus {
    /// What there is in our project, as a member says it: name and place.
    fn places(&self, at: usize) -> Vec<(String, String)> {
        let path = format!("/1.0/instances?recursion=1&project={}", self.project());
        let all = self.daemons.get(at).api("GET", &path, None);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = all.as_array().unwrap().iter();
        all.map(|it| (text(&it["name"]), text(&it["location"]))).collect()
    }

    fn place(&self, id: &VmId) -> String {
        let all = self.places(0);
        all.into_iter().find(|(name, _)| name == id.as_str()).unwrap().1
    }

    async fn listed(&self, id: &VmId) -> Option<VmState> {
        let all = self.driver.list().await.unwrap();
        all.into_iter().find(|vm| vm.id == *id).map(|vm| vm.state)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_forks_land_on_all_members_and_the_image_is_there_once() {
    let rig = Incus::cluster().await;
    let driver = &rig.driver;
    let (base, client) = freezable(&rig).await;
    client.write_file("/root/before", 0o644, "before").await.unwrap();
    let template = key("aa");
    driver.checkpoint(&base, &freeze(&template, None)).await.unwrap();
    drop(client);
    driver.destroy(&base).await.unwrap();
    let ids: Vec<VmId> = (0..6).map(|_| VmId::generate()).collect();
    let forks = ids.iter().map(|id| async {
        let wanted = fork(id, &template, ForkPurpose::Instance, ForkStart::Running);
        driver.fork(&wanted).await.unwrap();
        let client = agent(driver, id).await;
        let file = client.read_file("/root/before").await.unwrap();
        assert_eq!(file.collect(100).await.unwrap(), b"before");
    });
    futures::future::join_all(forks).await;
    let mut on: Vec<String> = ids.iter().map(|id| rig.place(id)).collect();
    on.sort();
    assert_eq!(on, ["n1", "n1", "n2", "n2", "n3", "n3"]);
    let images = rig
        .daemons
        .get(1)
        .api("GET", &format!("/1.0/images?project={}", rig.project()), None);
    assert_eq!(images.as_array().unwrap().len(), 1);
    let copies = rig.places(0).into_iter().filter(|(name, _)| name.starts_with("cp-"));
    let copies: BTreeSet<String> = copies.map(|(_, member)| member).collect();
    assert_eq!(copies.len(), 3, "one copy of the checkpoint on each member");
    assert_eq!(driver.checkpoints().await.unwrap().len(), 1);
    for id in &ids {
        driver.destroy(id).await.unwrap();
    }
    driver.remove_checkpoint(&template).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_lost_member_is_said_to_be_lost_and_leaves_nothing_when_it_is_back() {
    let mut rig = Incus::cluster().await;
    let ids: Vec<VmId> = (0..3).map(|_| VmId::generate()).collect();
    for id in &ids {
        rig.driver.create(&spec(&rig, id)).await.unwrap();
    }
    let on_third = ids.iter().find(|id| rig.place(id) == "n3").unwrap().clone();
    let elsewhere = ids.iter().find(|id| rig.place(id) == "n1").unwrap().clone();
    rig.daemons.get_mut(2).kill_daemon();

    // As long as the cluster waits for it, so do we: nothing is called ended.
    let asked = rig.driver.inspect(&on_third).await;
    assert!(matches!(asked, Err(DriverError::Unknown { .. })), "{asked:?}");
    assert_eq!(rig.listed(&on_third).await, Some(VmState::Running));
    let twice = rig.driver.create(&spec(&rig, &on_third)).await;
    assert!(
        matches!(twice, Err(DriverError::Unknown { .. })),
        "no second VM of that id: {twice:?}"
    );

    eventually("the member is given up", GIVEN_UP, || async {
        (rig.listed(&on_third).await == Some(VmState::Stopped)).then_some(())
    })
    .await;
    assert_eq!(rig.driver.inspect(&on_third).await.unwrap(), Some(VmState::Stopped));
    let why = rig.driver.why_silent(&on_third).await.unwrap().unwrap();
    assert!(why.contains("n3"), "{why}");
    let ended = rig.driver.destroy(&on_third).await;
    assert!(matches!(ended, Err(DriverError::Retry { .. })), "{ended:?}");
    // Everything else continues, and new ones are made on the others.
    assert!(agent(&rig.driver, &elsewhere).await.health().await.is_ok());
    let new = VmId::generate();
    rig.driver.create(&spec(&rig, &new)).await.unwrap();
    assert_ne!(rig.place(&new), "n3");

    rig.daemons.get_mut(2).start_again();
    eventually("what was there is removed", BACK, || async {
        rig.driver.destroy(&on_third).await.is_ok().then_some(())
    })
    .await;
    for id in ids.iter().chain([&new]) {
        rig.driver.destroy(id).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_silent_member_and_a_lost_majority_are_errors_and_not_ends() {
    let mut rig = Incus::cluster().await;
    let id = VmId::generate();
    rig.driver.create(&spec(&rig, &id)).await.unwrap();
    // A daemon that takes connections and answers nothing.
    let silent = rig.daemons.get(2).pid();
    kill(silent, Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    let new = VmId::generate();
    eventually("a VM is made without it", GIVEN_UP, || async {
        rig.driver.create(&spec(&rig, &new)).await.is_ok().then_some(())
    })
    .await;
    assert!(begin.elapsed() < GIVEN_UP);
    assert_ne!(rig.place(&new), "n3");
    kill(silent, Signal::SIGCONT).unwrap();

    for at in [1, 2] {
        rig.daemons.get_mut(at).kill_daemon();
    }
    let asked = rig.driver.list().await;
    assert!(
        matches!(asked, Err(DriverError::Retry { .. } | DriverError::Unknown { .. })),
        "{asked:?}"
    );
    let made = rig.driver.create(&spec(&rig, &VmId::generate())).await;
    assert!(
        matches!(made, Err(DriverError::Retry { .. } | DriverError::Unknown { .. })),
        "{made:?}"
    );
    for at in [1, 2] {
        rig.daemons.get_mut(at).start_again();
    }
    eventually("all is as it was", BACK, || async {
        (rig.driver.inspect(&id).await.ok() == Some(Some(VmState::Running))).then_some(())
    })
    .await;
    for vm in rig.driver.list().await.unwrap() {
        rig.driver.destroy(&vm.id).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Incus (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_every_members_port_serves_a_client_with_a_certificate() {
    let rig = Incus::cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["hearth".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("crt"), made.cert.pem()).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    let server = rig.daemons.get(0).api("GET", "/1.0", None);
    let server = server["environment"]["certificate"].as_str().unwrap();
    std::fs::write(path("server"), server).unwrap();
    let open = |members: &[usize]| {
        let addresses = members.iter().map(|at| {
            let url = format!("https://{}", address(*at));
            url.parse::<IncusAddress>().unwrap()
        });
        IncusDriver::open(IncusOptions {
            settings: IncusSettings {
                addresses: addresses.collect(),
                tls: Some(IncusTls {
                    certificate: path("crt"),
                    key: path("key"),
                    server_certificate: Some(path("server")),
                }),
                pool: Some(POOL.to_owned()),
                ..IncusSettings::default()
            },
            installation: rig.label().to_owned(),
            stores: Stores::new(rig.data(), Vec::new()),
            agent: None,
        })
        .unwrap()
    };
    let refused = open(&[0]).create(&spec(&rig, &VmId::generate())).await;
    assert!(
        matches!(refused, Err(DriverError::Permanent { .. })),
        "it is not known there: {refused:?}"
    );
    let body = json!({ "name": "hearth", "type": "client", "certificate": base64(made.cert.der()) });
    rig.daemons.get(0).api("POST", "/1.0/certificates", Some(&body));
    let id = VmId::generate();
    open(&[0]).create(&spec(&rig, &id)).await.unwrap();
    for at in 0..3 {
        // Another one is asked when the first is no member at all.
        let driver = open(&[7, at]);
        let client = agent(&driver, &id).await;
        let body = vec![7; 3 << 20];
        client.write_file("/root/large", 0o644, body.clone()).await.unwrap();
        let file = client.read_file("/root/large").await.unwrap();
        assert!(file.collect(4 << 20).await.unwrap() == body);
    }
    // One that shows another certificate is not spoken to.
    std::fs::write(path("server"), made.cert.pem()).unwrap();
    assert!(open(&[0]).list().await.is_err());
    rig.driver.destroy(&id).await.unwrap();
    rig.finish().await;
}
