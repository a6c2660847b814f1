//! The network namespace of a VM, and its link to the gateway's. Speaks to the kernel directly; knows no VM.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use futures::TryStreamExt as _;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::oneshot;

use super::ADDRESS;
use crate::network::MTU;

/// Whether packets are passed on between links, as the kernel shows it to who is in the namespace.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Whether links that are made from now on carry packets for a loopback.
const CARRY_LOOPBACK: &str = "/proc/sys/net/ipv4/conf/default/route_localnet";
/// The loopback of every namespace.
const LOOPBACK: u32 = 1;
/// The address of the VM in namespace 0, which is none.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 16, 0);
/// Namespaces that there can be.
pub(super) const MOST: u16 = 4094;

/// The address of the VM in a namespace.
pub(super) fn address(slot: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + u32::from(slot))
}

/// The namespace of the VM that has an address.
pub(super) fn slot(address: Ipv4Addr) -> Option<u16> {
    let number = address.to_bits().checked_sub(FIRST.to_bits())?;
    u16::try_from(number).ok().filter(|slot| (1..=MOST).contains(slot))
}

/// The name of the host's end of a link.
fn link(slot: u16) -> String {
    format!("vm{slot}")
}

fn failed(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Gives our own namespace the resolver's address, and lets it pass packets on.
pub(super) async fn prepare() -> io::Result<()> {
    let on = |text: &str| text.trim() == "1";
    if !std::fs::read_to_string(FORWARDING).is_ok_and(|text| on(&text)) {
        std::fs::write(FORWARDING, "1").map_err(|error| {
            failed(
                "this host does not let the VM network pass packets on (in a container, /proc/sys must be writable, or the host's \
                 net.ipv4.ip_forward be 1)",
                error,
            )
        })?;
    }
    // Where it cannot be, attempts to reach the host's loopback are refused in the VM's namespace, and not listed.
    let _ = std::fs::write(CARRY_LOOPBACK, "1");
    let handle = connect()?;
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(|error| failed("the loopback cannot be brought up", error))?;
    handle
        .address()
        .add(LOOPBACK, ADDRESS.into(), 32)
        .replace()
        .execute()
        .await
        .map_err(|error| failed("the resolver's address cannot be set", error))
}

/// The numbers of the links that are there.
pub(super) async fn links() -> io::Result<Vec<u16>> {
    let handle = connect()?;
    let mut links = handle.link().get().execute();
    let mut found = Vec::new();
    let next = |error| failed("the links of VMs cannot be listed", error);
    while let Some(link) = links.try_next().await.map_err(next)? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        found.extend(name.and_then(|name| name.strip_prefix("vm")?.parse::<u16>().ok()));
    }
    Ok(found)
}

/// Makes a namespace with a link to ours. It lasts until its file is closed and no process is in it.
pub(super) async fn make(slot: u16) -> io::Result<File> {
    let (tell, made) = oneshot::channel();
    // In a thread of its own: it is in the new namespace from then on.
    std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _ = tell.send(runtime.and_then(|runtime| runtime.block_on(make_here(slot))));
    })?;
    made.await
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace has ended")))
}

async fn make_here(slot: u16) -> io::Result<File> {
    // It speaks to the namespace that it was opened in.
    let outside = connect()?;
    let carries = std::fs::read_to_string(CARRY_LOOPBACK).is_ok_and(|text| text.trim() == "1");
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| failed("a network namespace cannot be made", error))?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let inside = connect()?;
    let carries = carries && std::fs::write(CARRY_LOOPBACK, "1").is_ok();
    let mut linked = join(&outside, &inside, &namespace, slot).await;
    if linked.is_ok() && carries {
        linked = give_up_loopback(&inside).await;
    }
    if linked.is_err()
        && let Ok(Some(index)) = index(&outside, &link(slot)).await
    {
        // A half of it may be left on our side.
        let _ = outside.link().del(index).execute().await;
    }
    linked.map_err(|error| {
        failed(
            "a link for a VM cannot be made (if the kernel lacks veth, load it as root: `modprobe veth`)",
            error,
        )
    })?;
    Ok(namespace)
}

async fn join(outside: &Handle, inside: &Handle, namespace: &File, slot: u16) -> Result<(), rtnetlink::Error> {
    let (ours, theirs) = (link(slot), format!("up{slot}"));
    outside
        .link()
        .add(LinkVeth::new(&ours, &theirs).build())
        .execute()
        .await?;
    let need = async |handle: &Handle, name: &str| index(handle, name).await?.ok_or(rtnetlink::Error::RequestFailed);
    let (near, far) = (need(outside, &ours).await?, need(outside, &theirs).await?);
    let moved = LinkUnspec::new_with_index(far)
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    outside.link().set(moved).execute().await?;
    let up = |index| LinkUnspec::new_with_index(index).mtu(MTU).up().build();
    outside.link().set(up(near)).execute().await?;
    let route = || RouteMessageBuilder::<Ipv4Addr>::new().scope(RouteScope::Link);
    let to_vm = route().destination_prefix(address(slot), 32).output_interface(near);
    outside.route().add(to_vm.build()).execute().await?;
    // What a guest sends to QEMU's own address for "the host" ends at this loopback, where nothing listens: it is refused at once.
    let loopback = LinkUnspec::new_with_index(LOOPBACK).up().build();
    inside.link().set(loopback).execute().await?;
    let far = need(inside, &theirs).await?;
    inside.link().set(up(far)).execute().await?;
    inside.address().add(far, address(slot).into(), 32).execute().await?;
    let to_gateway = route().destination_prefix(ADDRESS, 32).output_interface(far);
    inside.route().add(to_gateway.build()).execute().await?;
    let onwards = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(ADDRESS)
        .output_interface(far);
    inside.route().add(onwards.build()).execute().await
}

/// What a guest sends to QEMU's own address for "the host" then goes to the gateway, which refuses it and counts it.
async fn give_up_loopback(inside: &Handle) -> Result<(), rtnetlink::Error> {
    let mut addresses = inside.address().get().set_link_index_filter(LOOPBACK).execute();
    while let Some(address) = addresses.try_next().await? {
        inside.address().del(address).execute().await?;
    }
    Ok(())
}

/// The number of a link; `None` when there is none of this name.
async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    Ok(found.try_next().await?.map(|link| link.header.index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_tells_the_namespace_and_others_tell_none() {
        for number in [1, 255, 256, MOST] {
            assert_eq!(slot(address(number)), Some(number));
        }
        for other in ["198.18.16.0", "198.18.0.1", "10.0.9.3", "255.255.255.255"] {
            assert_eq!(slot(other.parse().unwrap()), None, "{other}");
        }
    }
}
