//! `hearth doctor`: what this machine can do, and what to do about what it cannot. Asks no server.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ContentArrangement, Table};
use hearth_drivers::host::{Finding, Status, check};
use hearth_server::ServeOptions;

use crate::args::Globals;
use crate::failure::{EXIT_FAILED, Failure};
use crate::{agent, local, output, places};

/// `hearth doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The address that a server would listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7717")]
    listen: SocketAddr,
}

pub(crate) async fn run(globals: &Globals, args: DoctorArgs) -> Result<u8, Failure> {
    let data = places::data_dir(globals);
    let url = format!("http://{}", args.listen);
    // An address that our own server has taken is no fault.
    let ours = local::servers()
        .unwrap_or_default()
        .iter()
        .any(|server| server.url == url);
    let mut findings = check(&data, &places::images(&data), (!ours).then_some(args.listen)).await;
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

/// Whether this program can make images by itself.
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

/// What a server takes of this machine when it is not told otherwise.
fn limits(data: PathBuf) -> Finding {
    let usual = ServeOptions::new(data);
    let gib = |mib: u64| mib as f64 / 1024.0;
    Finding {
        name: "limits",
        status: Status::Ok,
        summary: format!(
            "at most {} VMs with {:.1} GiB of memory in all, and {:.1} GiB of disk for templates; `hearth serve` --max-vms, --memory and \
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
