//! `hearth pool test`: one boot from scratch, watched live; says what to do next when it fails.

use std::time::Duration;

use hearth_api::client::{Client, ClientError};
use hearth_api::exec::ExecRequest;
use hearth_api::find::ProjectFound;
use hearth_api::instance::{InstanceDetail, InstanceStatus, StepName};
use hearth_api::pool::TestRequest;
use hearth_api::values::Word;

use super::{TestArgs, gone};
use crate::args::Globals;
use crate::boot::{self, Screen};
use crate::failure::{EXIT_FAILED, EXIT_SIGNAL_BASE, Failure};
use crate::text::{clean_line, clean_lines};
use crate::{branches, connect, hint, output};

pub(super) const AFTER_HELP: &str = "\
Given commands are saved to the pool first and replace all it has (`hearth pool edit` changes one of them); an enabled pool
begins to build them beside the test, so disable it to try some. Steps and their output go to standard error as they happen, the table at the
end to standard output. Works while the pool is disabled. The exit code is 1 when a step failed. The VM stays for
15 minutes, so that you can look into it with `hearth shell`, and counts with its memory; `hearth pool clear` removes it now, with
the pool's own VMs that nobody claimed. Ctrl-C stops the watching, not the boot: `hearth pool cancel`\nends that, and `hearth shell` looks into it meanwhile.";

pub(super) async fn run(globals: &Globals, args: &TestArgs) -> Result<u8, Failure> {
    let body = TestRequest {
        setup_commands: args.commands.read()?,
    };
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    let id = client.test_pool(&project.id, &body, !args.no_cache).await?.id;
    output::note(&format!("test boot {id} of {}", project.name));
    let given = body.setup_commands.is_some();
    let enabled = given && is_enabled(&client, &project).await?;
    if enabled {
        output::note(&format!(
            "the given commands are saved to the pool, which is enabled and builds them beside this test; to try commands first: {}",
            hint::command(["pool", "set", project.name.as_str(), "--disabled"])
        ));
    } else if given {
        output::note("the given commands are saved to the pool");
    }
    let mut screen = Screen::on_stderr();
    let detail = tokio::select! {
        detail = boot::follow(&client, &project.id, &id, &mut screen) => Some(detail?),
        _ = tokio::signal::ctrl_c() => None,
    };
    let has_shown = |step: &str| screen.has_shown_failure(step);
    let was_shown = detail
        .as_ref()
        .and_then(|detail| detail.summary.failed_step.as_deref())
        .is_some_and(has_shown);
    drop(screen);
    let Some(detail) = detail else {
        output::note(&format!(
            "the test boot continues\n  watch it again:  {}\n  end it:          {}",
            hint::command(["pool", "instance", project.name.as_str(), id.as_str(), "--follow"]),
            hint::command(["pool", "cancel", project.name.as_str(), id.as_str()])
        ));
        return Ok(EXIT_SIGNAL_BASE + nix::libc::SIGINT as u8);
    };
    if globals.json {
        output::print_json(&detail)?;
    } else {
        output::print_line(&boot::table(&detail))?;
    }
    if detail.status == InstanceStatus::Failed {
        let wrong = wrong_repository(&client, &project, &detail).await;
        let inside = match leaves_a_vm(&detail) {
            true => inside(&client, &detail).await,
            false => Inside::Closed(None),
        };
        say_what_failed(&project, &detail, was_shown, wrong, inside);
        if enabled {
            output::note(
                "the given commands stay saved: VMs of the set-up before keep serving until these work or others are saved",
            );
        }
        return Ok(EXIT_FAILED);
    }
    output::note(&format!(
        "ready after {}\nits VM stays for 15 minutes and counts with its memory: {} looks inside, {} removes it and what the pool has ready",
        output::millis(detail.summary.total_duration_ms),
        hint::command(["shell", id.as_str()]),
        hint::command(["pool", "clear", project.name.as_str()])
    ));
    Ok(0)
}

/// Whether VMs are kept ready, so that what is saved is built at once.
async fn is_enabled(client: &Client, project: &ProjectFound) -> Result<bool, Failure> {
    match client.get_pool(&project.id).await {
        Ok(view) => Ok(view.config.is_some_and(|config| config.enabled)),
        // A token that may not read, or a server that says something else.
        Err(ClientError::Api { status: 403, .. } | ClientError::Decode { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Asked only where a branch or an address may be at fault.
async fn wrong_repository(
    client: &Client,
    project: &ProjectFound,
    detail: &InstanceDetail,
) -> Option<(Vec<String>, String)> {
    let failed = detail.summary.failed_step.as_deref();
    if failed != Some(StepName::CloneRepo.as_str()) {
        return None;
    }
    if let Some(wrong) = branches::explain(client, project).await {
        return Some(wrong);
    }
    branches::other_address(client, project, boot::failed_step(detail).and_then(boot::repo_of)).await
}

/// Its reason is the server's own sentence.
fn was_cancelled(detail: &InstanceDetail) -> bool {
    let summary = detail.summary.error.as_deref();
    let said = detail.failure_reason.as_deref().or(summary);
    said.is_some_and(|reason| reason.starts_with("cancelled by "))
}

/// Without a VM there is nothing to look into; that of a cancelled boot goes at once.
fn leaves_a_vm(detail: &InstanceDetail) -> bool {
    let failed = detail.summary.failed_step.as_deref();
    !was_cancelled(detail) && failed.is_some_and(|step| step != StepName::CreateVm.as_str())
}

/// Whether the VM that a boot left is kept for debugging.
enum Inside {
    Open,
    /// It is there no more, or does not answer: why.
    Closed(Option<String>),
}

/// Asked of the VM itself: what ended it may have been the set-up, a moment ago.
async fn inside(client: &Client, detail: &InstanceDetail) -> Inside {
    const PATIENCE: Duration = Duration::from_secs(10);
    let seen = gone::of_one(client, &detail.id).await;
    if let Some(ended) = seen.and_then(|seen| seen.vm_ended()) {
        return Inside::Closed(Some(ended));
    }
    let question = ExecRequest {
        argv: Word::try_from("true").ok().map(|program| vec![program]),
        ..ExecRequest::default()
    };
    match tokio::time::timeout(PATIENCE, client.exec(&detail.id, &question)).await {
        // The machine is slow, or the server is an older one: it may still be.
        Err(_) | Ok(Ok(_)) => Inside::Open,
        Ok(Err(ClientError::Api { status: 404 | 405, .. } | ClientError::Decode { .. })) => Inside::Open,
        // This is the answer to a token that is no admin's: others look only into what they claimed.
        Ok(Err(error)) if error.to_string().contains("is not claimed") => Inside::Closed(Some(
            "an admin's token may, this one may look only into VMs that it claimed".to_owned(),
        )),
        Ok(Err(error @ ClientError::Api { .. })) => Inside::Closed(Some(error.to_string())),
        Ok(Err(_)) => Inside::Closed(None),
    }
}

fn say_what_failed(
    project: &ProjectFound,
    detail: &InstanceDetail,
    was_shown: bool,
    wrong: Option<(Vec<String>, String)>,
    inside: Inside,
) {
    let reason = boot::failure(detail).unwrap_or_else(|| "it said nothing".to_owned());
    let failed = detail.summary.failed_step.as_deref();
    let reason = clean_lines(&reason);
    let mut lines = vec![format!("\nFAILED: {}", reason.join("\n  "))];
    let mut printed = boot::failed_output(detail);
    // The sentence ends with some of these lines.
    printed.retain(|line| !reason.iter().any(|said| said.contains(line.trim())));
    // What a person has just seen is not printed once more.
    if !printed.is_empty() && !was_shown {
        lines.push("its last lines:".to_owned());
        lines.extend(printed.iter().map(|line| format!("  | {line}")));
    }
    let name = &project.name;
    let id = &detail.id;
    lines.push("what to do next:".to_owned());
    let cancelled = was_cancelled(detail);
    match inside {
        Inside::Open => lines.push(format!(
            "  look inside (the VM stays for 15 minutes): {}",
            hint::command(["shell", id.as_str()])
        )),
        Inside::Closed(Some(why)) => lines.push(format!("  its VM cannot be looked into: {}", clean_line(&why))),
        Inside::Closed(None) => {}
    }
    lines.push(format!(
        "  read the whole log:                        {}",
        hint::command(["pool", "instance", name.as_str(), id.as_str(), "--log"])
    ));
    if let Some((told, _)) = &wrong {
        lines.extend(told.iter().map(|line| format!("  {line}")));
    }
    let wrong = wrong.map(|(_, command)| command);
    lines.extend(failed.filter(|_| !cancelled).map(|step| {
        match wrong
            .or_else(|| said_fix(detail, name))
            .or_else(|| next_fix(step, name))
        {
            Some(fix) => format!("  fix it:                                    {fix}"),
            None => format!(
                "  see what this host lacks:                  {}",
                hint::command(["doctor"])
            ),
        }
    }));
    lines.push(format!(
        "  try again:                                 {}",
        hint::command(["pool", "test", name.as_str()])
    ));
    output::note(&lines.join("\n"));
}

/// The command that the failure itself names as the remedy.
fn said_fix(detail: &InstanceDetail, project: &str) -> Option<String> {
    let reason = detail.failure_reason.as_deref()?;
    let (_, after) = reason.split_once("`hearth ")?;
    let (command, _) = after.split_once('`')?;
    let words = command
        .split(' ')
        .map(|word| if word == "PROJECT" { project } else { word });
    Some(clean_line(&hint::command(words.collect::<Vec<_>>())))
}

/// Where the cause of a failed step is changed; `None` when it is no matter of the project.
fn next_fix(step: &str, project: &str) -> Option<String> {
    let step = StepName::ALL.into_iter().find(|name| name.as_str() == step)?;
    match step {
        StepName::CreateVm | StepName::EnsureServer => None,
        StepName::SetEnvVars => Some(hint::command(["env", "list", project])),
        StepName::CloneRepo => Some(format!(
            "{}   (is the address right, is the branch there, can the host reach it?)",
            hint::command(["project", "edit", project])
        )),
        StepName::InitRepo => Some(
            "change .capy/settings.json (or .hearth/settings.json, or what was imported) in the repository, and push"
                .to_owned(),
        ),
        StepName::ProjectSetup => Some(hint::command(["project", "edit", project])),
        StepName::RepoSetup => Some(hint::command(["setup", "edit", project])),
        // It keeps the other commands, which `set` would replace.
        StepName::WarmPoolSetup => Some(hint::command(["pool", "edit", project])),
    }
}
