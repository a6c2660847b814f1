//! What each tool takes. The schema that clients see is made from these types, and so are the descriptions of the fields.

use rmcp::schemars::generate::SchemaSettings;
use rmcp::schemars::{self, JsonSchema};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::refusal::Refusal;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Projects {
    /// Name or id; without it all are listed
    pub(crate) project: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeSetup {
    /// Name or id
    pub(crate) project: String,
    /// Make the project, from the repository at this URL
    pub(crate) create_from: Option<String>,
    /// Branch that VMs start on
    pub(crate) branch: Option<String>,
    /// Set-up commands to change, by name: a known name is replaced in its place, a new one comes last
    pub(crate) commands: Option<Vec<Command>>,
    /// Scripts of a repository
    pub(crate) scripts: Option<Scripts>,
    /// Keep VMs ready
    pub(crate) enabled: Option<bool>,
    /// How many
    pub(crate) target_size: Option<i64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    pub(crate) name: String,
    /// Bash text, run in /home; absent: removed
    pub(crate) command: Option<String>,
    /// Started detached
    pub(crate) background: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scripts {
    /// org/name
    pub(crate) repository: String,
    /// Once, in the checkout; "" removes a script, absent keeps it
    pub(crate) initialize: Option<String>,
    /// When a claim moved the checkout
    pub(crate) update_after_checkout: Option<String>,
    /// When the VM is ready: starts services
    pub(crate) startup: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TestSetup {
    /// Starts a test of this project
    pub(crate) project: Option<String>,
    /// Waits for this boot, or reads it
    pub(crate) instance: Option<String>,
    /// Whole output
    pub(crate) full: Option<bool>,
    /// Default 50
    pub(crate) wait_seconds: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    /// Name or id
    pub(crate) project: String,
    /// Your task's name: the same again is the same VM
    pub(crate) task_id: String,
    pub(crate) branch: Option<String>,
    /// Continue from what `fork` saved
    pub(crate) checkpoint: Option<String>,
    /// For a VM that is being made; default 50
    pub(crate) wait_seconds: Option<u64>,
    pub(crate) ttl_minutes: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub(crate) instance: String,
    /// Bash text
    pub(crate) command: String,
    /// Default /home
    pub(crate) cwd: Option<String>,
    /// Ends the command
    pub(crate) timeout_seconds: Option<u64>,
    /// Reply at once, or when `wait_for` is printed
    pub(crate) background: Option<bool>,
    /// Reply when it has printed this text
    pub(crate) wait_for: Option<String>,
    /// Reply then at the latest; default 50
    pub(crate) wait_seconds: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Output {
    pub(crate) instance: String,
    pub(crate) session: String,
    /// First byte; without it beginning and end of all
    pub(crate) from: Option<u64>,
    /// First written to its input
    pub(crate) input: Option<String>,
    /// First sent, like TERM or INT
    pub(crate) signal: Option<String>,
    /// Reply when this text is printed after `from`
    pub(crate) wait_for: Option<String>,
    /// Wait for its end, or `wait_for`; default 0, with `wait_for` 50
    pub(crate) wait_seconds: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadFile {
    pub(crate) instance: String,
    pub(crate) path: String,
    /// First line, from 1
    pub(crate) offset: Option<u64>,
    /// Lines; default 500
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteFile {
    pub(crate) instance: String,
    pub(crate) path: String,
    pub(crate) content: String,
    /// Octal, like 0755
    pub(crate) mode: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EditFile {
    pub(crate) instance: String,
    pub(crate) path: String,
    /// Exact text; must be there once
    pub(crate) old: String,
    pub(crate) new: String,
    /// Replace each
    pub(crate) all: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) instance: String,
    /// Without it all that listen
    pub(crate) port: Option<u16>,
    /// A link that needs no token
    pub(crate) share: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fork {
    pub(crate) instance: String,
    /// Default 1
    pub(crate) count: Option<u64>,
    /// Names the copies: the same again are the same
    pub(crate) task_id: Option<String>,
    /// Instead: keep its state by this name
    pub(crate) save: Option<String>,
    /// Instead: go back to what was saved
    pub(crate) restore: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    pub(crate) instance: String,
}

/// Reads a call's arguments; what does not fit is named with its place.
pub(crate) fn read<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|error| {
        let place = error.path().to_string();
        let fault = error.inner().to_string();
        Refusal::new(match place.as_str() {
            "." => format!("the arguments cannot be used: {fault}"),
            place => format!("the argument `{place}` cannot be used: {fault}"),
        })
    })
}

/// The schema of a tool's arguments, without what says nothing to an agent.
pub(crate) fn schema<T: JsonSchema>() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    slim(&mut schema);
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn slim(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("type") {
                for key in ["$schema", "title", "format", "minimum", "maximum", "default"] {
                    fields.remove(key);
                }
            }
            // That a field may be absent is said by `required`.
            if let Some(Value::Array(kinds)) = fields.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    fields.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(of)) = fields.remove("anyOf") {
                let of = of.into_iter().find(|one| one["type"] != "null");
                if let Some(Value::Object(of)) = of {
                    fields.extend(of.into_iter().filter(|(key, _)| key != "description"));
                }
                fields.remove("default");
            }
            for value in fields.values_mut() {
                slim(value);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(slim),
        _ => {}
    }
}
