//! The list of the tools, and who does what each is called for.

use std::sync::{Arc, LazyLock};

use hearth_api::client::Client;
use rmcp::model::{Tool, ToolAnnotations};
use rmcp::schemars;
use serde_json::{Map, Value};

use crate::arguments::{self, read, schema};
use crate::refusal::Refusal;
use crate::{files, ports, projects, run, test_boot, vms};

/// What a tool does to the world outside of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Changes,
    Destroys,
}

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    use Effect::{Changes, Destroys, Reads};
    vec![
        tool::<arguments::Projects>(
            "projects",
            "List projects. With one: its set-up, pool, newest boots and your VMs.",
            Reads,
        ),
        tool::<arguments::ChangeSetup>(
            "change_setup",
            "Change how a project's VMs are set up, or make a project. Test it before you enable the pool.",
            Changes,
        ),
        tool::<arguments::TestSetup>(
            "test_setup",
            "Test-boot a project's set-up and wait; the reply has the steps and the failed one's output. Steps before a change are cached. \
             While it runs call again with its `instance`.",
            Changes,
        ),
        tool::<arguments::Claim>(
            "claim",
            "Get a prepared VM for your task. Release it when done.",
            Changes,
        ),
        tool::<arguments::Run>(
            "run",
            "Run a command in your VM. The reply has exit code and output (beginning and end when long). One that still runs keeps running: read on \
             with `output`.",
            Destroys,
        ),
        tool::<arguments::Output>(
            "output",
            "Read what a session of `run` printed, wait for its end or a text, write to it, or signal it.",
            Changes,
        ),
        tool::<arguments::ReadFile>(
            "read_file",
            "Read lines of a text file, or list a folder, in your VM.",
            Reads,
        ),
        tool::<arguments::WriteFile>("write_file", "Write a whole file in your VM.", Destroys),
        tool::<arguments::EditFile>("edit_file", "Replace a text in a file in your VM.", Destroys),
        tool::<arguments::Port>("port", "The address of a port in your VM.", Changes),
        tool::<arguments::Fork>(
            "fork",
            "Copy your running VM, memory and processes included; or save its state, or go back to a saved one.",
            Destroys,
        ),
        tool::<arguments::Release>("release", "Give a VM back: it is destroyed.", Destroys),
    ]
});

fn tool<T: schemars::JsonSchema>(name: &'static str, description: &'static str, effect: Effect) -> Tool {
    let annotations = match effect {
        Effect::Reads => ToolAnnotations::new().read_only(true),
        Effect::Changes => ToolAnnotations::new().destructive(false),
        Effect::Destroys => ToolAnnotations::new(),
    };
    let tool = Tool::new(name, description, Arc::new(schema::<T>()));
    match effect {
        Effect::Destroys => tool,
        Effect::Reads | Effect::Changes => tool.with_annotations(annotations),
    }
}

/// All of them.
#[must_use]
pub fn tools() -> Vec<Tool> {
    TOOLS.clone()
}

/// Does what a tool is called for; the text of the reply.
pub(crate) async fn call(client: &Client, name: &str, arguments: Map<String, Value>) -> Result<String, Refusal> {
    match name {
        "projects" => projects::projects(client, read(arguments)?).await,
        "change_setup" => projects::change_setup(client, read(arguments)?).await,
        "test_setup" => test_boot::test_setup(client, read(arguments)?).await,
        "claim" => vms::claim(client, read(arguments)?).await,
        "run" => run::run(client, read(arguments)?).await,
        "output" => run::output(client, read(arguments)?).await,
        "read_file" => files::read_file(client, read(arguments)?).await,
        "write_file" => files::write_file(client, read(arguments)?).await,
        "edit_file" => files::edit_file(client, read(arguments)?).await,
        "port" => ports::port(client, read(arguments)?).await,
        "fork" => vms::fork(client, read(arguments)?).await,
        "release" => vms::release(client, read(arguments)?).await,
        other => {
            let names: Vec<_> = TOOLS.iter().map(|tool| tool.name.as_ref()).collect();
            Err(Refusal::new(format!(
                "there is no tool `{other}`; there are {}",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters of a token, as a rule of thumb that is not too kind for JSON.
    const CHARACTERS_OF_A_TOKEN: usize = 4;

    #[test]
    fn all_that_a_model_reads_of_the_tools_is_small() {
        let all = serde_json::to_string(&tools()).unwrap();
        let tokens = all.chars().count() / CHARACTERS_OF_A_TOKEN;
        println!("{} tools, {tokens} tokens", tools().len());
        assert!(tools().len() <= 12);
        assert!(tokens <= 2000, "{tokens} tokens: {all}");
    }

    #[test]
    fn schemas_say_what_is_needed_and_nothing_that_helps_nobody() {
        let all = serde_json::to_value(tools()).unwrap();
        let run = &all.as_array().unwrap()[4];
        assert_eq!(run["name"], "run");
        assert_eq!(
            run["inputSchema"]["required"],
            serde_json::json!(["instance", "command"])
        );
        assert_eq!(run["inputSchema"]["properties"]["wait_seconds"]["type"], "integer");
        assert_eq!(run["inputSchema"]["additionalProperties"], false);
        let text = all.to_string();
        for useless in ["$schema", "\"format\"", "\"null\"", "$ref"] {
            assert!(!text.contains(useless), "{useless}: {text}");
        }
        let scripts = &all.as_array().unwrap()[1]["inputSchema"]["properties"]["scripts"];
        assert_eq!(scripts["type"], "object", "{scripts}");
        assert_eq!(scripts["required"], serde_json::json!(["repository"]));
    }
}
