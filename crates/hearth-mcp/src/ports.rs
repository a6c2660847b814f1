//! Addresses of ports in a VM.

use hearth_api::client::Client;
use hearth_api::port::{InstancePort, ShareRequest};

use crate::arguments::Port;
use crate::find;
use crate::refusal::Refusal;

pub(crate) async fn port(client: &Client, arguments: Port) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    if arguments.share.unwrap_or(false) {
        let port = arguments
            .port
            .ok_or_else(|| Refusal::new("say which `port` is to be shared"))?;
        let request = ShareRequest {
            port,
            expires_in_seconds: None,
        };
        let share = client.share_port(&id, &request).await?;
        return Ok(format!(
            "{}\nworks without a token until {:.0}, or until the VM is released",
            share.url, share.expires_at
        ));
    }
    let ports = client.list_ports(&id).await?;
    let shown = |port: &InstancePort| {
        format!(
            "{} {} ({})",
            port.port,
            port.url,
            port.process.as_deref().unwrap_or("?")
        )
    };
    let wanted: Vec<String> = ports
        .items
        .iter()
        .filter(|port| arguments.port.is_none_or(|wanted| wanted == port.port))
        .map(shown)
        .collect();
    let all: Vec<String> = ports.items.iter().map(|port| port.port.to_string()).collect();
    match (wanted.is_empty(), arguments.port, all.is_empty()) {
        (false, ..) => Ok(format!(
            "{}\nRequests need the header `Authorization: Bearer TOKEN`; `share`: true makes a link without.",
            wanted.join("\n")
        )),
        (true, Some(port), false) => Err(Refusal::new(format!(
            "nothing listens on port {port} in the VM; what listens: {}",
            all.join(", ")
        ))),
        (true, Some(port), true) => Err(Refusal::new(format!(
            "nothing listens on port {port} in the VM, nor on another: start the server with `run`, `background`: true"
        ))),
        (true, None, _) => Ok("nothing listens in the VM".to_owned()),
    }
}
