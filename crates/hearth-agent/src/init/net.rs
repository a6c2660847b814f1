//! The network of a VM without an init: QEMU's user-mode network, whose addresses never change. Spoken to the kernel
//! directly, because a small image need not have `ip`.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PREFIX: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The card's driver may still be loading.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Brings up the loopback and the first card. A VM without a card is no fault.
pub(crate) async fn bring_up() {
    if let Err(error) = try_bring_up().await {
        eprintln!("hearth-agent: the network could not be set up: {error}");
    }
}

async fn try_bring_up() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = async {
        for _ in 0..ATTEMPTS {
            if set_links(&handle).await? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    let result = result.await;
    connection.abort();
    result
}

/// True when a card was found and set up.
async fn set_links(handle: &Handle) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let index = link.header.index;
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await?;
        if link.header.flags.contains(LinkFlags::Loopback) {
            continue;
        }
        handle
            .address()
            .add(index, ADDRESS.into(), PREFIX)
            .replace()
            .execute()
            .await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(GATEWAY)
            .output_interface(index)
            .build();
        handle.route().add(route).replace().execute().await?;
        return Ok(true);
    }
    Ok(false)
}
