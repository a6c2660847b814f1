//! The published document: OpenAPI 3.1, generated from the handlers and the wire types and then completed here with what all
//! operations share: the token, path parameters, refusals, the request id. The same document checks request bodies
//! ([`super::schema`]), so what it says is what the server does.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use hearth_api::error::{ErrorBody, ErrorCode};
use hearth_api::exec::{ExecExit, ExecMessage};
use hearth_api::file::FileChange;
use hearth_api::instance::FollowEvent;
use hearth_api::settings::Settings;
use hearth_api::terminal::TerminalMessage;
use hearth_api::values::{Cursor, TerminalKind};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::error::status_of;

/// Where the document is served.
pub const PATH: &str = "/openapi.json";
/// Where the schema of repositories' settings files is served.
pub const SETTINGS_PATH: &str = "/schemas/settings.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hearth",
        description = "Keeps virtual machines warm for coding agents: configure a project's pool, test its set-up, claim a \
                       ready VM when a task starts.\n\nErrors have one shape, `{\"error\":{\"code\",\"message\",\"details\"?}}`; \
                       a request that is malformed in any way is 422. Lists take `limit` and the opaque `cursor` of the \
                       page before. Timestamps are RFC 3339, UTC, with milliseconds.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact()
    ),
    tags(
        (name = "projects", description = "Repositories, variables and set-up of a project"),
        (name = "warm pool", description = "How many VMs are kept ready, test boots, instances"),
        (name = "claims", description = "Taking a VM, working in it, giving it back"),
        (name = "files", description = "Files in a VM"),
        (name = "tokens", description = "API tokens"),
        (name = "server", description = "Whether the server works")
    ),
    components(schemas(
        Cursor,
        ErrorBody,
        ExecExit,
        ExecMessage,
        FileChange,
        FollowEvent,
        Settings,
        TerminalKind,
        TerminalMessage
    ))
)]
pub struct Base;

/// The whole document.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // Plain structs with string keys: serialising them cannot fail.
    let mut document = serde_json::to_value(super::routes().into_openapi()).unwrap_or_default();
    complete(&mut document);
    document
});

/// The schema of a repository's settings file, whole in itself.
pub static SETTINGS_SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let schemas = &DOCUMENT["components"]["schemas"];
    let mut whole = schemas["Settings"].clone();
    let mut names = BTreeSet::new();
    reach(&whole, schemas, &mut names);
    let definitions: Map<String, Value> = names
        .into_iter()
        .map(|name| {
            let definition = schemas[&name].clone();
            (name, definition)
        })
        .collect();
    whole["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    whole["title"] = json!("Hearth repository settings");
    whole["properties"]["$schema"] = json!({ "type": "string" });
    whole["$defs"] = Value::Object(definitions);
    point_to_definitions(&mut whole);
    whole
});

pub fn schema_name(reference: &str) -> Option<&str> {
    reference.strip_prefix("#/components/schemas/")
}

/// The names of all schemas that are used from here.
pub fn reach(from: &Value, schemas: &Value, into: &mut BTreeSet<String>) {
    match from {
        Value::Object(object) => {
            if let Some(name) = object.get("$ref").and_then(Value::as_str).and_then(schema_name)
                && into.insert(name.to_owned())
            {
                reach(&schemas[name], schemas, into);
            }
            object.values().for_each(|value| reach(value, schemas, into));
        }
        Value::Array(values) => values.iter().for_each(|value| reach(value, schemas, into)),
        _ => {}
    }
}

fn point_to_definitions(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = schema_name(reference)
            {
                *reference = format!("#/$defs/{name}");
            }
            object.values_mut().for_each(point_to_definitions);
        }
        Value::Array(values) => values.iter_mut().for_each(point_to_definitions),
        _ => {}
    }
}

fn complete(document: &mut Value) {
    drop_null_defaults(document);
    // Exactly one of the two, and the first word is a program; the derive cannot say either.
    let exec = &mut document["components"]["schemas"]["ExecRequest"];
    exec["oneOf"] = json!([{ "required": ["command"] }, { "required": ["argv"] }]);
    exec["properties"]["argv"]["prefixItems"] = json!([{ "type": "string", "minLength": 1 }]);
    // The derive loses the example of a type that is any object.
    document["components"]["schemas"]["GitHook"]["example"] = json!({
        "ref": "refs/heads/main",
        "repository": { "full_name": "acme/app", "clone_url": "https://git.example.org/acme/app.git" }
    });
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "A token: `hearth_…`" }
    });
    document["security"] = json!([{ "token": [] }]);
    // Wherever the document was fetched from: a server does not know the names that proxies give it.
    document["servers"] = json!([{ "url": "/" }]);
    if let Some(paths) = document["paths"].as_object_mut() {
        paths.extend(super::replies::document_paths());
    }
    super::replies::complete(document);
    document["components"]["headers"] = json!({
        "RequestId": {
            "description": "Names this request in the server's log.",
            "required": true, "schema": { "type": "string" }
        },
        "RetryAfter": {
            "description": "Seconds to wait before asking again.",
            "required": true, "schema": { "type": "integer", "minimum": 1 }
        }
    });
    document["components"]["responses"] = ErrorCode::ALL
        .into_iter()
        .map(|code| (response_name(code).to_owned(), error_response(code)))
        .collect::<Map<_, _>>()
        .into();
    let Some(paths) = document["paths"].as_object_mut() else {
        return;
    };
    for (path, item) in paths {
        let Some(operations) = item.as_object_mut() else {
            continue;
        };
        for operation in operations.values_mut() {
            complete_operation(path, operation);
        }
    }
}

/// The derive writes `"default": null` where an absent field is left as it is, which is no value of the field's type.
fn drop_null_defaults(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("default") == Some(&Value::Null) {
                object.remove("default");
            }
            object.values_mut().for_each(drop_null_defaults);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_null_defaults),
        _ => {}
    }
}

fn complete_operation(path: &str, operation: &mut Value) {
    let mut errors = vec![ErrorCode::InternalError, ErrorCode::Unavailable];
    // Only what lies under the API's base path needs a token.
    if path.starts_with(super::BASE) {
        errors.extend([
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::ValidationError,
            ErrorCode::TooManyRequests,
        ]);
    } else {
        operation["security"] = json!([]);
    }
    let names: Vec<&str> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .collect();
    if !names.is_empty() {
        errors.push(ErrorCode::NotFound);
        let mut parameters: Vec<Value> = names.iter().map(|name| path_parameter(name)).collect();
        parameters.extend(operation["parameters"].as_array().cloned().unwrap_or_default());
        operation["parameters"] = json!(parameters);
    }
    if let Some(body) = operation.get_mut("requestBody") {
        // Bytes of a file may be as many as fit into the VM.
        if body.pointer("/content/application~1json").is_some() {
            errors.push(ErrorCode::PayloadTooLarge);
        }
        body_may_be_absent_but_not_null(body);
    }
    if let Some(links) = links_of(operation["operationId"].as_str().unwrap_or_default()) {
        operation["responses"]["200"]["links"] = links;
    }
    let Some(responses) = operation["responses"].as_object_mut() else {
        return;
    };
    // Refusals of this operation alone are named at its handler, by their status.
    errors.extend(
        ErrorCode::ALL
            .into_iter()
            .filter(|code| responses.contains_key(status_of(*code).as_str())),
    );
    for code in errors {
        let reference = format!("#/components/responses/{}", response_name(code));
        responses.insert(status_of(code).as_str().to_owned(), json!({ "$ref": reference }));
    }
    for (status, response) in responses {
        if status.starts_with('2') {
            response["headers"]["x-request-id"] = json!({ "$ref": "#/components/headers/RequestId" });
        }
    }
}

/// An optional body is written as one that may be `null`; what it may be is missing.
fn body_may_be_absent_but_not_null(body: &mut Value) {
    let Some(schema) = body.pointer_mut("/content/application~1json/schema") else {
        return;
    };
    let object = schema["oneOf"]
        .as_array()
        .and_then(|branches| branches.iter().find(|branch| branch["$ref"].is_string()))
        .cloned();
    if let Some(object) = object {
        *schema = object;
        body["required"] = json!(false);
    }
}

/// Where a reply's ids lead.
fn links_of(operation: &str) -> Option<Value> {
    let link = |to: &str, parameters: &[(&str, &str)]| {
        let parameters: Map<String, Value> = parameters
            .iter()
            .map(|(name, from)| ((*name).to_owned(), json!(from)))
            .collect();
        (to.to_owned(), json!({ "operationId": to, "parameters": parameters }))
    };
    let links: Vec<(String, Value)> = match operation {
        "create_project" => [
            "get_project",
            "get_pool",
            "patch_pool",
            "test_pool",
            "retry_pool",
            "explain_pool",
            "claim_instance",
            "get_setup",
        ]
        .iter()
        .map(|to| link(to, &[("projectId", "$response.body#/id")]))
        .collect(),
        "test_pool" => vec![
            link(
                "get_instance",
                &[("projectId", "$request.path.projectId"), ("id", "$response.body#/id")],
            ),
            link("follow_instance", &[("id", "$response.body#/id")]),
            link("view_instance", &[("id", "$response.body#/id")]),
        ],
        "claim_instance" => [
            "view_instance",
            "explain_claim",
            "exec_in_instance",
            "stat_file",
            "list_files",
            "make_directory",
            "move_file",
            "read_file",
            "write_file",
            "remove_file",
            "watch_files",
            "read_folder",
            "write_folder",
            "extend_claim",
            "heartbeat_instance",
            "release_instance",
        ]
        .iter()
        .map(|to| link(to, &[("id", "$response.body#/id")]))
        .collect(),
        "create_token" => vec![link("revoke_token", &[("tokenId", "$response.body#/id")])],
        _ => return None,
    };
    Some(links.into_iter().collect::<Map<_, _>>().into())
}

fn path_parameter(name: &str) -> Value {
    let (schema, description) = match name {
        "projectId" => ("ProjectId", "The project"),
        "tokenId" => ("TokenId", "The token"),
        "name" => ("VariableName", "The variable's name"),
        "log" => {
            return json!({
                "name": name, "in": "path", "required": true, "description": "The log's name", "schema": { "type": "string" }
            });
        }
        _ => ("InstanceId", "The instance"),
    };
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": { "$ref": format!("#/components/schemas/{schema}") }
    })
}

fn response_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unauthorized => "Unauthorized",
        ErrorCode::Forbidden => "Forbidden",
        ErrorCode::NotFound => "NotFound",
        ErrorCode::MethodNotAllowed => "MethodNotAllowed",
        ErrorCode::Conflict => "Conflict",
        ErrorCode::Gone => "Gone",
        ErrorCode::PayloadTooLarge => "PayloadTooLarge",
        ErrorCode::RangeNotSatisfiable => "RangeNotSatisfiable",
        ErrorCode::ValidationError => "ValidationError",
        ErrorCode::TooManyRequests => "TooManyRequests",
        ErrorCode::InternalError => "InternalError",
        ErrorCode::Unavailable => "Unavailable",
        ErrorCode::InsufficientStorage => "InsufficientStorage",
    }
}

fn error_response(code: ErrorCode) -> Value {
    let (description, message) = match code {
        ErrorCode::Unauthorized => (
            "No token, or one that is unknown, revoked or expired",
            "send a token: `Authorization: Bearer hearth_…`",
        ),
        ErrorCode::Forbidden => (
            "The token lacks the scope, or the project's own limit forbids it",
            "this token lacks the scope `claim`",
        ),
        ErrorCode::NotFound => (
            "There is no such thing, or not for this token",
            "there is no such project",
        ),
        ErrorCode::MethodNotAllowed => (
            "The path does not take this method",
            "this path does not take this method",
        ),
        ErrorCode::Conflict => (
            "It does not go with what is there",
            "this task id was used before for another claim (`branch` differs); use a new one, or ask for the same",
        ),
        ErrorCode::Gone => (
            "It is gone",
            "the VM of this task id was released or its lease ended; use a new task id",
        ),
        ErrorCode::PayloadTooLarge => ("The body is too long", "the body is longer than 64 MiB"),
        ErrorCode::RangeNotSatisfiable => (
            "The file has no such part",
            "/home/app/build.log has 120 bytes and no such part",
        ),
        ErrorCode::InsufficientStorage => (
            "The disk of the VM is full",
            "the disk of the VM is full: /home/app/data could not be written; remove something, then try again",
        ),
        ErrorCode::ValidationError => (
            "The request is not valid; `details` lists each field",
            "the request is not valid: targetSize: must be at most 20",
        ),
        ErrorCode::TooManyRequests => (
            "Nothing is ready, or the token asks too often",
            "no VM is ready (1 being made, 0 failed in 24 h); ask again, or claim with a wait",
        ),
        ErrorCode::InternalError => (
            "The server has a fault",
            "the server could not do it; its log says why, see the request id",
        ),
        ErrorCode::Unavailable => (
            "It cannot be done now",
            "the disk under the server's data folder is full; free some space, then try again",
        ),
    };
    let mut error = json!({ "code": code, "message": message });
    if code == ErrorCode::ValidationError {
        error["details"] = json!([{ "path": "targetSize", "message": "must be at most 20" }]);
    }
    let mut headers = json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } });
    if matches!(code, ErrorCode::TooManyRequests | ErrorCode::Unavailable) {
        headers["Retry-After"] = json!({ "$ref": "#/components/headers/RetryAfter" });
    }
    json!({
        "description": description,
        "headers": headers,
        "content": { "application/json": {
            "schema": { "$ref": "#/components/schemas/ErrorBody" },
            "example": { "error": error }
        } }
    })
}
