//! `hearth doctor`: what this machine can do, and what to do about what it cannot; and whether the server answers.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ContentArrangement, Table};
use hearth_drivers::host::{Finding, Status, check, check_incus};
use hearth_drivers::incus::{IncusDriver, IncusOptions};
use hearth_server::{Listen, ServeOptions};

use super::serve_incus::{IncusArgs, RealDriver};
use crate::args::Globals;
use crate::failure::{EXIT_FAILED, Failure};
use crate::listen::ListenArg;
use crate::local::{self, LocalServer};
use crate::{agent, connect, output, places};

/// What the findings about servers are called.
const SERVER: &str = "server";

/// `hearth doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The address that a server would listen on [default: the running server's, else 127.0.0.1:7717]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<ListenArg>,
    /// What would make the VMs
    #[arg(long, value_enum, default_value = "qemu", hide = true)]
    driver: RealDriver,
    #[command(flatten)]
    incus: IncusArgs,
}

pub(crate) async fn run(globals: &Globals, args: DoctorArgs) -> Result<u8, Failure> {
    let named = connect::named_url(globals);
    let running = running(globals);
    let data = match (places::named_data_dir(globals), running.as_slice()) {
        // The one that runs is the one that a person asks about.
        (None, [server]) if named.is_none() => server.data_dir.clone(),
        _ => places::data_dir(globals),
    };
    // An address that our own server has taken is no fault.
    let is_free_wanted = running.iter().all(|server| server.data_dir != data);
    let asked = match args.listen {
        Some(ListenArg(address)) => vec![address],
        None if is_free_wanted => ServeOptions::new(data.clone()).listen,
        None => Vec::new(),
    };
    let mut ports = asked.into_iter().filter_map(|listen| match listen {
        Listen::Tcp(address) => Some(address),
        Listen::Unix(_) | Listen::Open(_) => None,
    });
    let listen = ports.next().filter(|address| {
        let url = format!("http://{address}");
        let all = local::servers().unwrap_or_default();
        let mut known = all.iter().map(|server| server.url.as_str()).chain(named.as_deref());
        known.all(|known| known.trim_end_matches('/') != url)
    });
    let images = places::images(&data);
    let mut findings = match args.driver {
        RealDriver::Qemu => check(&data, &images, listen).await,
        RealDriver::Incus => {
            let options = IncusOptions {
                settings: args.incus.settings(),
                // Nothing is looked for that an installation has.
                installation: "doctor".to_owned(),
                stores: images.clone(),
                agent: agent::for_incus(),
            };
            let driver = IncusDriver::open(options).map_err(|error| Failure::new(error.to_string()))?;
            check_incus(&data, &images, listen, &driver).await
        }
    };
    match named {
        Some(url) => findings.push(server(globals, &url, None).await),
        None if running.is_empty() => findings.push(Finding::ok(
            SERVER,
            "none of yours runs on this machine; `hearth serve` starts one",
        )),
        None => {
            for local in &running {
                findings.push(server(globals, &local.url, Some(local)).await);
            }
        }
    }
    findings.push(carried_agent());
    findings.push(limits(data));
    if globals.json {
        output::print_json(&findings)?;
    } else {
        output::print_line(&table(&findings))?;
    }
    let failed = findings.iter().filter(|finding| finding.status == Status::Fail).count();
    if failed == 0 {
        return Ok(0);
    }
    output::note(&format!(
        "{} must be put right before VMs can be made",
        output::count(failed as u64, "finding")
    ));
    Ok(EXIT_FAILED)
}

/// The running servers that are meant: all of this user's, or the one of the data folder that is named.
fn running(globals: &Globals) -> Vec<LocalServer> {
    let wanted = places::named_data_dir(globals).map(|folder| connect::absolute(&folder));
    let mut all = local::servers().unwrap_or_default();
    all.retain(|server| wanted.as_ref().is_none_or(|folder| server.data_dir == *folder));
    all
}

/// Whether a server answers at its address.
async fn server(globals: &Globals, url: &str, local: Option<&LocalServer>) -> Finding {
    let whose = local
        .map(|local| format!(" (process {}, data folder {})", local.pid, local.data_dir.display()))
        .unwrap_or_default();
    let asked = async { Ok::<(), Failure>(connect::without_token(globals, url)?.health().await?) };
    match asked.await {
        Ok(()) => Finding::ok(SERVER, format!("{url} answers{whose}")),
        Err(failure) => {
            let (message, hint) = failure.into_parts();
            Finding::fail(
                SERVER,
                format!("{message}{whose}"),
                hint.unwrap_or_else(|| "see the server's log".to_owned()),
            )
        }
    }
}

/// Whether this program can build images.
fn carried_agent() -> Finding {
    const NAME: &str = "agent";
    match agent::version() {
        Some(version) => Finding::ok(NAME, format!("version {version} is inside this program")),
        None => Finding::warn(
            NAME,
            "this build of hearth has no agent inside: `hearth image build` needs one",
            agent::HOW_TO,
        ),
    }
}

/// What a server takes of this machine by default.
fn limits(data: PathBuf) -> Finding {
    let usual = ServeOptions::new(data);
    let gib = |mib: u64| mib as f64 / 1024.0;
    Finding {
        name: "limits",
        status: Status::Ok,
        summary: format!(
            "a server without settings takes at most {} VMs with {:.1} GiB of memory in all, and {:.1} GiB of disk for templates; `hearth serve` --max-vms, --memory and \
             --template-disk say otherwise, `hearth pool explain` says what is used",
            usual.max_vms,
            gib(usual.memory_mib),
            gib(usual.template_disk_mib)
        ),
        fix: None,
    }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for finding in findings {
        let (word, colour) = match finding.status {
            Status::Ok => ("ok", Color::Green),
            Status::Warn => ("warning", Color::Yellow),
            Status::Fail => ("FAIL", Color::Red),
        };
        table.add_row([
            Cell::new(word).fg(colour),
            Cell::new(finding.name),
            Cell::new(&finding.summary),
        ]);
        if let Some(fix) = &finding.fix {
            table.add_row([Cell::new(""), Cell::new(""), Cell::new(format!("-> {fix}"))]);
        }
    }
    table.trim_fmt()
}
