//! A test boot: started, waited for, and what became of each step.

use futures::StreamExt as _;
use hearth_api::client::Client;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{FollowEvent, InstanceDetail, InstanceStatus, Step, StepStatus, failure_with_names};
use hearth_api::pool::TestRequest;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

use crate::arguments::TestSetup;
use crate::bounded::ends_of;
use crate::find;
use crate::refusal::Refusal;
use crate::run::{DEFAULT_WAIT_SECONDS, wait};

pub(crate) async fn test_setup(client: &Client, arguments: TestSetup) -> Result<String, Refusal> {
    let deadline = Instant::now() + wait(arguments.wait_seconds, DEFAULT_WAIT_SECONDS);
    let (project, id) = match (&arguments.project, &arguments.instance) {
        (Some(project), None) => {
            let project = find::project(client, project).await?;
            let started = client.test_pool(&project.id, &TestRequest::default(), true).await?;
            (project.id, started.id)
        }
        (None, Some(instance)) => {
            let id = find::instance(client, instance).await?;
            let view = client.view_instance(&id).await?;
            (view.project_id, id)
        }
        _ => {
            return Err(Refusal::new(
                "give either `project`, to start a test, or the `instance` of one that was started",
            ));
        }
    };
    until_over(client, &id, deadline).await?;
    let boot = client.get_instance(&project, &id).await?;
    Ok(told(&boot, &project, arguments.full.unwrap_or(false)))
}

/// Until the boot is over, or then.
async fn until_over(client: &Client, id: &InstanceId, deadline: Instant) -> Result<(), Refusal> {
    let followed = async {
        let mut events = client.follow(id).await?;
        while let Some(event) = events.next().await {
            if matches!(event?, FollowEvent::Ended { .. }) {
                break;
            }
        }
        Ok::<(), Refusal>(())
    };
    match tokio::time::timeout_at(deadline, followed).await {
        Ok(ended) => ended,
        Err(_) => Ok(()),
    }
}

fn told(boot: &InstanceDetail, project: &ProjectId, full: bool) -> String {
    let id = &boot.id;
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    let took = seconds(boot.summary.total_duration_ms);
    let head = match boot.status {
        InstanceStatus::Provisioning if boot.steps.is_empty() => format!(
            "the boot {id} has done no step in {took:.1} s: its VM starts, or the host has no place for it yet; \
             call `test_setup` with `instance`: {id} to wait on"
        ),
        InstanceStatus::Provisioning => {
            format!("the boot {id} still runs after {took:.1} s; call `test_setup` with `instance`: {id} to wait on")
        }
        InstanceStatus::Failed => format!("the boot {id} failed after {took:.1} s"),
        InstanceStatus::Ready | InstanceStatus::Claimed => {
            format!("the boot {id} succeeded in {took:.1} s; its VM goes after 15 minutes, or now by `release`")
        }
    };
    let mut lines = vec![head];
    for step in &boot.steps {
        let result = match (step.status, is_cached(step)) {
            (StepStatus::Error, _) => "FAILED",
            (StepStatus::Success, true) => "cached",
            (StepStatus::Success, false) => "ok",
        };
        let subject = fact(step, "repo").map(|repo| format!(" {repo}")).unwrap_or_default();
        let commands = commands(step);
        let took = seconds(step.duration_ms.unwrap_or_default());
        lines.push(format!("{result:6} {}{subject} {took:.1} s{commands}", step.name));
    }
    if let Some(step) = boot.steps.iter().find(|step| step.status == StepStatus::Error) {
        let reason = boot
            .failure_reason
            .as_deref()
            .or(step.error.as_deref())
            .unwrap_or_default();
        lines.push(failure_with_names(&boot.steps, reason));
        if let Some(output) = step.output.as_deref().filter(|output| !output.is_empty()) {
            let shown = match full {
                true => output.to_owned(),
                false => ends_of(output, |_| {
                    format!("`test_setup` with `instance`: {id} and `full`: true has them")
                }),
            };
            lines.push(format!("its output:\n{shown}"));
        }
        lines.push(format!(
            "Change it with `change_setup`, then call `test_setup` with `project`: {project} again."
        ));
    } else if let Some(reason) = &boot.failure_reason {
        lines.push(reason.clone());
    }
    lines.join("\n")
}

fn fact<'a>(step: &'a Step, key: &str) -> Option<&'a str> {
    step.metadata.as_ref()?.get(key)?.as_str()
}

fn is_cached(step: &Step) -> bool {
    step.metadata
        .as_ref()
        .is_some_and(|metadata| metadata["cached"] == true)
}

/// The commands of a step, where it names them.
fn commands(step: &Step) -> String {
    let commands = step
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.get("commands")?.as_array());
    let names = commands.into_iter().flatten().filter_map(|command| {
        let name = command.get("name")?.as_str()?;
        let cached = if command["cached"] == Value::Bool(true) {
            " (cached)"
        } else {
            ""
        };
        Some(format!("{name}{cached}"))
    });
    let names: Vec<String> = names.collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(": {}", names.join(", ")),
    }
}
