//! What a guest can reach and what it cannot, tried from inside a guest; and that the network heals.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::VmState;
use hearth_guest::client::AgentClient;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::contract::{Rig, agent, shell, spec};
use crate::qemu::{Qemu, kill};
use crate::support::{eventually, processes_with};

const SOON: Duration = Duration::from_secs(60);

/// Says which port it listens on, then greets everybody, as a server on the host would. Gives the port and the count of guests.
fn serve(address: IpAddr) -> (u16, Arc<AtomicUsize>) {
    use std::io::Write;
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            drop(stream.and_then(|mut stream| stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nreached\n")));
        }
    });
    (port, count)
}

pub(crate) fn host_addresses() -> Vec<Ipv4Addr> {
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let addresses = interfaces.filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()));
    addresses.filter(|address| !address.is_loopback()).collect()
}

async fn must_not_reach(client: &AgentClient, address: &str, port: u16) {
    let text = format!("curl --silent --show-error --max-time 8 http://{address}:{port}/");
    let (code, printed) = shell(client, &text).await;
    assert_ne!(code, Some(0), "the guest reached {address}:{port}: {printed}");
    assert!(!printed.contains("reached"), "{printed}");
}

async fn must_reach_the_world(client: &AgentClient) {
    let (code, printed) = shell(
        client,
        "curl --silent --show-error --max-time 30 --head http://deb.debian.org/",
    )
    .await;
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.starts_with("HTTP/1.1 "), "{printed}");
}

/// Not a test: a server that [`a_guest_reaches_the_world_and_not_the_host`] starts inside the VM network.
#[test]
#[ignore = "not a test: started by another test"]
fn not_a_test_listener_inside_the_vm_network() {
    let (port, count) = serve(Ipv4Addr::UNSPECIFIED.into());
    // It can be reached where nothing forbids it: from no place inside the network, that is, but the rules let a connection to
    // the own address pass for no one. So the proof that it listens is the bind itself.
    eprintln!("PORT {port}");
    let mut line = String::new();
    drop(std::io::stdin().read_line(&mut line));
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_guest_reaches_the_world_and_not_the_host() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let id = VmId::generate();
    driver.create(&spec(&rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    must_reach_the_world(&client).await;

    let (port, count) = serve(Ipv4Addr::LOCALHOST.into());
    for address in ["10.0.2.2", "127.0.0.1", "10.0.9.2", "10.0.9.100", "10.0.2.3"] {
        must_not_reach(&client, address, port).await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "something reached the host's loopback");
    let addresses = host_addresses();
    assert!(
        !addresses.is_empty(),
        "this test needs a host with an address besides loopback"
    );
    for address in addresses {
        let (port, count) = serve(address.into());
        assert!(
            std::net::TcpStream::connect((address, port)).is_ok(),
            "the host itself reaches it"
        );
        eventually("the host's own visit is counted", SOON, || async {
            (count.load(Ordering::SeqCst) == 1).then_some(())
        })
        .await;
        must_not_reach(&client, &address.to_string(), port).await;
        must_not_reach(&client, "10.0.2.2", port).await;
        assert_eq!(
            count.load(Ordering::SeqCst),
            1,
            "something reached the host's address {address}"
        );
    }
    // Cloud metadata and private networks: refused at once, not after a timeout.
    let (code, printed) = shell(
        &client,
        "time curl --silent --show-error --max-time 8 http://169.254.169.254/",
    )
    .await;
    assert_eq!(code, Some(7), "refused, {printed}");

    // Another program's port inside the VM network.
    let holder = rig.network_process("holder").to_string();
    let mut command = tokio::process::Command::new("nsenter");
    command.args(["--target", &holder, "--net"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.arg("--").arg(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "--ignored",
        "--nocapture",
        "qemu_network::not_a_test_listener_inside_the_vm_network",
    ]);
    let mut listener = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listener.stderr.take().unwrap()).lines();
    let port = loop {
        let line = lines.next_line().await.unwrap().expect("the listener says its port");
        if let Some((_, port)) = line.split_once("PORT ") {
            break port.trim().parse::<u16>().unwrap();
        }
    };
    for address in ["10.0.2.2", "10.0.9.100"] {
        must_not_reach(&client, address, port).await;
    }
    drop(listener.stdin.take());
    assert!(
        listener.wait().await.unwrap().success(),
        "nobody reached the listener inside"
    );
    driver.destroy(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_dead_network_is_made_anew() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let first = VmId::generate();
    driver.create(&spec(&rig, &first)).await.unwrap();
    // Without its uplink, the next look (a `create`, or the driver's own care) attaches another to the same network.
    let (holder, uplink) = (rig.network_process("holder"), rig.network_process("uplink"));
    kill(uplink).await;
    let second = VmId::generate();
    driver.create(&spec(&rig, &second)).await.unwrap();
    assert_eq!(rig.network_process("holder"), holder);
    assert_ne!(rig.network_process("uplink"), uplink);
    let client = agent(&*driver, &first).await;
    must_reach_the_world(&client).await;
    drop(client);
    // Without its holder, VMs that run keep their network and new ones get another.
    kill(holder).await;
    let third = VmId::generate();
    driver.create(&spec(&rig, &third)).await.unwrap();
    assert_ne!(rig.network_process("holder"), holder);
    must_reach_the_world(&agent(&*driver, &first).await).await;
    must_reach_the_world(&agent(&*driver, &third).await).await;
    for id in [&first, &second, &third] {
        assert_eq!(driver.inspect(id).await.unwrap(), Some(VmState::Running));
        driver.destroy(id).await.unwrap();
    }
    rig.finish().await;
    assert_eq!(processes_with(rig.label()), []);
}
