//! What a VM that is held to a policy reaches, tried from inside; that nothing gets round it, and that it can be changed while the VM runs.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use hearth_api::egress::{EgressMode, EgressPolicy, RefusedProtocol};
use hearth_api::ids::VmId;
use hearth_drivers::Driver;
use hearth_guest::client::AgentClient;

use crate::contract::{Rig, agent, shell, spec};
use crate::qemu::{Qemu, kill};
use crate::qemu_network::host_addresses;
use crate::support::eventually;

const SOON: Duration = Duration::from_secs(60);
/// A name that every test machine can resolve and reach, and one that it can resolve.
const LISTED: &str = "deb.debian.org";
const OTHER: &str = "pypi.org";

/// Asks a resolver for a name over UDP, without any library of the guest's: prints what came of it.
const ASK: &str = r#"
import socket, sys
server, name = sys.argv[1], sys.argv[2]
query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0\0\1\0\1"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(6)
try:
    s.connect((server, 53)); s.send(query); reply = s.recv(4096)
    print("code", reply[3] & 15, "answers", reply[7])
except OSError as error:
    print("failed:", type(error).__name__)
"#;

fn policy(mode: EgressMode, hosts: &[&str], cidrs: &[&str]) -> EgressPolicy {
    EgressPolicy {
        mode,
        hosts: hosts.iter().map(|host| (*host).try_into().unwrap()).collect(),
        cidrs: cidrs.iter().map(|cidr| (*cidr).try_into().unwrap()).collect(),
    }
}

/// How `curl` ended: 0 it got an answer, 6 no such name, 7 refused at once, 28 it waited in vain.
async fn curl(client: &AgentClient, url: &str) -> (Option<i32>, String) {
    shell(
        client,
        &format!("curl --silent --show-error --max-time 20 --output /dev/null --head {url}"),
    )
    .await
}

async fn ask(client: &AgentClient, server: &str, name: &str) -> String {
    let (_, printed) = shell(client, &format!("python3 /root/ask.py {server} {name}")).await;
    printed.trim().to_owned()
}

/// A server that says `reached` and then repeats what it reads; its port.
fn echo(address: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nreached\n"));
                while let Ok(count) = stream.read(&mut buffer) {
                    if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

async fn refused(driver: &dyn Driver, id: &VmId) -> Vec<(String, RefusedProtocol)> {
    let egress = driver.egress(id).await.unwrap();
    egress
        .refused
        .into_iter()
        .map(|attempt| {
            assert!(attempt.count > 0 && attempt.first_at <= attempt.last_at, "{attempt:?}");
            (attempt.target, attempt.protocol)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn vm_with_a_list_reaches_what_is_on_it_and_nothing_else() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let id = VmId::generate();
    driver.create(&spec(&rig, &id)).await.unwrap();
    let client = agent(&*driver, &id).await;
    let write = format!("cat > /root/ask.py <<'EOF'\n{ASK}\nEOF");
    assert_eq!(shell(&client, &write).await.0, Some(0));
    assert_eq!(
        curl(&client, &format!("http://{OTHER}/")).await.0,
        Some(0),
        "it is open at first"
    );

    let list = policy(EgressMode::Allow, &[LISTED], &[]);
    driver.hold_egress(&id, &list).await.unwrap();
    assert_eq!(driver.egress(&id).await.unwrap().policy, list);
    let (code, printed) = curl(&client, &format!("http://{LISTED}/")).await;
    assert_eq!(code, Some(0), "{printed}");

    // By name: there is none.
    let (code, printed) = curl(&client, &format!("http://{OTHER}/")).await;
    assert_eq!(code, Some(6), "{printed}");
    let (code, _) = shell(&client, "getent hosts below.deb.debian.org").await;
    assert_ne!(code, Some(0), "a name below one on the list is not on it");
    // By address, DNS over HTTPS, metadata, private networks, other VMs, the gateway, the uplink: refused at once.
    for address in [
        "1.1.1.1",
        "8.8.8.8",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "198.18.16.1",
        "198.18.16.2",
        "10.0.9.2",
        "10.0.9.3",
        "10.0.9.100",
        "10.0.2.2",
        "[fd00:ec2::254]",
        "[2606:4700:4700::1111]",
    ] {
        for url in [format!("http://{address}/"), format!("https://{address}/dns-query")] {
            let (code, printed) = curl(&client, &url).await;
            assert_eq!(code, Some(7), "{url}: {printed}");
        }
    }
    // By another resolver, the uplink's own among them, over UDP and TCP.
    for server in ["8.8.8.8", "9.9.9.9", "10.0.9.3"] {
        assert_eq!(
            ask(&client, server, OTHER).await,
            "failed: ConnectionRefusedError",
            "{server}"
        );
        let (code, printed) = curl(&client, &format!("telnet://{server}:53")).await;
        assert_eq!(code, Some(7), "{server}: {printed}");
    }
    // The resolver that it has says no, and yes to what is on the list.
    assert_eq!(ask(&client, "10.0.2.3", OTHER).await, "code 3 answers 0");
    let listed = ask(&client, "10.0.2.3", LISTED).await;
    assert!(
        listed.starts_with("code 0 answers") && !listed.ends_with(" 0"),
        "{listed}"
    );

    let told = refused(&*driver, &id).await;
    for (target, protocol) in [
        (OTHER, RefusedProtocol::Dns),
        ("1.1.1.1:443", RefusedProtocol::Tcp),
        ("169.254.169.254:80", RefusedProtocol::Tcp),
        ("8.8.8.8:53", RefusedProtocol::Udp),
        ("8.8.8.8:53", RefusedProtocol::Tcp),
        ("10.0.9.3:53", RefusedProtocol::Udp),
        ("10.0.9.100:80", RefusedProtocol::Tcp),
        // QEMU's address for "the host".
        ("127.0.0.1:80", RefusedProtocol::Tcp),
    ] {
        assert!(told.contains(&(target.to_owned(), protocol)), "{target}: {told:?}");
    }
    assert!(told.iter().all(|(target, _)| target != LISTED), "{told:?}");
    driver.destroy(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn policy_is_changed_while_the_vm_runs_and_outlives_the_gateway() {
    let rig = Qemu::new().await;
    let driver = rig.driver();
    let (id, other) = (VmId::generate(), VmId::generate());
    driver.create(&spec(&rig, &id)).await.unwrap();
    driver.create(&spec(&rig, &other)).await.unwrap();
    let client = agent(&*driver, &id).await;
    let neighbour = agent(&*driver, &other).await;
    let host = host_addresses()
        .into_iter()
        .next()
        .expect("this test needs a host with an address");
    let port = echo(host);
    let url = format!("http://{host}:{port}/");
    assert_eq!(
        curl(&client, &url).await.0,
        Some(7),
        "the host's own address is closed when all is open"
    );

    // Named, it is open: to this VM and in both modes.
    let named = [host.to_string()];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    for mode in [EgressMode::Open, EgressMode::Allow] {
        driver.hold_egress(&id, &policy(mode, &[], &named)).await.unwrap();
        let (code, printed) = curl(&client, &format!("--get {url}")).await;
        assert_eq!(code, Some(0), "{mode:?}: {printed}");
    }
    assert_eq!(
        curl(&neighbour, &url).await.0,
        Some(7),
        "another VM's policy is its own"
    );

    // A connection that is open ends when the policy does not allow it any more.
    let talk = format!(
        "trap \"\" PIPE; exec 3<>/dev/tcp/{host}/{port}; (cat <&3 >/root/heard) & while echo word >&3; do sleep 0.1; done; echo ended >/root/ended"
    );
    let (code, printed) = shell(
        &client,
        &format!("setsid bash -c '{talk}' >/dev/null 2>&1 & echo begun"),
    )
    .await;
    assert_eq!((code, printed.as_str()), (Some(0), "begun\n"));
    eventually("the server answers", SOON, async || {
        let (_, heard) = shell(&client, "cat /root/heard").await;
        heard.contains("word").then_some(())
    })
    .await;
    driver
        .hold_egress(&id, &policy(EgressMode::Allow, &[], &[]))
        .await
        .unwrap();
    eventually("the connection ended", SOON, async || {
        let (code, _) = shell(&client, "test -e /root/ended").await;
        (code == Some(0)).then_some(())
    })
    .await;

    // Without the gateway the rules hold; another one takes over, and resolves what it may.
    kill(rig.network_process("gateway")).await;
    assert_eq!(curl(&client, &url).await.0, Some(7));
    let list = policy(EgressMode::Allow, &[LISTED], &[]);
    driver.hold_egress(&id, &list).await.unwrap();
    let (code, printed) = curl(&client, &format!("http://{LISTED}/")).await;
    assert_eq!(code, Some(0), "{printed}");
    kill(rig.network_process("gateway")).await;
    let third = VmId::generate();
    driver.create(&spec(&rig, &third)).await.unwrap();
    assert_eq!(driver.egress(&id).await.unwrap().policy, list);
    assert_eq!(curl(&client, &format!("http://{OTHER}/")).await.0, Some(6));
    assert_eq!(curl(&client, &format!("http://{LISTED}/")).await.0, Some(0));
    assert_eq!(curl(&neighbour, &format!("http://{OTHER}/")).await.0, Some(0));
    for id in [&id, &other, &third] {
        driver.destroy(id).await.unwrap();
    }
    rig.finish().await;
}
