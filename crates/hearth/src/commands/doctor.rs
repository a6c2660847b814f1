//! `hearth doctor`: what this machine can do, and what to do about what it cannot. Asks no server.

use std::io::IsTerminal as _;
use std::net::SocketAddr;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ContentArrangement, Table};
use hearth_drivers::host::{Finding, Status, check};

use super::serve::data_dir;
use crate::args::Globals;
use crate::failure::{EXIT_FAILED, Failure};
use crate::{local, output};

/// `hearth doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The address that a server would listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7717")]
    listen: SocketAddr,
}

pub(crate) async fn run(globals: &Globals, args: DoctorArgs) -> Result<u8, Failure> {
    let data = data_dir(globals);
    let url = format!("http://{}", args.listen);
    // An address that our own server has taken is no fault.
    let ours = local::servers()
        .unwrap_or_default()
        .iter()
        .any(|server| server.url == url);
    let findings = check(&data, &data.join("images"), (!ours).then_some(args.listen)).await;
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
