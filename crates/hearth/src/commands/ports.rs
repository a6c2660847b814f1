//! `hearth ports`: what listens in a VM, and its previews. `hearth share`: a link to one of them for somebody without a token.

use std::time::Duration;

use clap::Args;
use hearth_api::port::{InstancePort, InstancePorts, InstancePreview, ShareRequest};

use super::serve::parse_length;
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth ports last
  hearth ports fix-17 --json

The URLs take HTTP and WebSockets, with the token (`Authorization: Bearer …`). For a browser: hearth share. For anything else than HTTP:
hearth forward.";

/// `hearth ports`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PortsArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
}

pub(crate) async fn run(globals: &Globals, args: PortsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let ports = client.list_ports(&id).await?;
    output::print(globals.json, &ports, show)?;
    Ok(0)
}

fn show(ports: &InstancePorts) -> String {
    let mut blocks = Vec::new();
    if ports.items.is_empty() {
        blocks.push("nothing listens in the VM".to_owned());
    } else {
        let header = ["Port", "Address", "PID", "User", "Command"];
        blocks.push(output::table(header, ports.items.iter().map(port)));
    }
    if !ports.previews.is_empty() {
        let header = ["Preview", "Repository", "Port", "Listens"];
        blocks.push(output::table(header, ports.previews.iter().map(preview)));
    }
    // Beside the tables: a URL is copied whole or it is of no use. A server on several addresses has one.
    let mut urls: Vec<(u16, &str)> = ports.items.iter().map(|one| (one.port, one.url.as_str())).collect();
    urls.extend(ports.previews.iter().map(|one| (one.port, one.url.as_str())));
    urls.sort_unstable();
    urls.dedup();
    if !urls.is_empty() {
        let lines: Vec<String> = urls
            .iter()
            .map(|(port, url)| format!("{port}: {}", clean_line(url)))
            .collect();
        blocks.push(lines.join("\n"));
    }
    let blocks: Vec<&str> = blocks.iter().map(|block| block.trim_end()).collect();
    blocks.join("\n\n")
}

fn port(port: &InstancePort) -> [String; 5] {
    let or_dash = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| clean_line(text));
    [
        port.port.to_string(),
        clean_line(&port.address),
        port.process_id.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        or_dash(port.user.as_ref()),
        or_dash(port.command.as_ref().or(port.process.as_ref())),
    ]
}

fn preview(preview: &InstancePreview) -> [String; 4] {
    [
        clean_line(&preview.name),
        clean_line(&preview.repo_full_name),
        preview.port.to_string(),
        if preview.listening { "yes" } else { "no" }.to_owned(),
    ]
}

const SHARE_HELP: &str = "\
Examples:
  hearth share last 3000
  hearth share fix-17 3000 --for 2h

A person who has the link reaches this one port of this one VM, without a token, until the link's end or the end of the claim.";

/// `hearth share`.
#[derive(Debug, Args)]
#[command(after_help = SHARE_HELP)]
pub(crate) struct ShareArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The port in the VM
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// How long the link works, in seconds or like `2h`, at most 30 days [default: 8h]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
    length: Option<Duration>,
}

pub(crate) async fn share(globals: &Globals, args: ShareArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let request = ShareRequest {
        port: args.port,
        expires_in_seconds: args.length.map(|length| length.as_secs()),
    };
    let share = client.share_port(&id, &request).await?;
    output::print(globals.json, &share, |share| share.url.clone())?;
    if !globals.json {
        output::note(&format!(
            "works without a token until {:.0}, or until the VM is released",
            share.expires_at
        ));
        let ports = client.list_ports(&id).await?;
        if ports.items.iter().all(|one| one.port != args.port) {
            let list = hint::command(["ports", args.id.as_str()]);
            output::note(&format!(
                "nothing listens on port {} yet; `{list}` shows what does",
                args.port
            ));
        }
    }
    Ok(0)
}
