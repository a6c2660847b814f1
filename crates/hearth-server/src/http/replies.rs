//! What the published document says of replies: an example of each, no key that is not named, and the paths that have no
//! handler of their own to be read from. The replies' types say the rest.

use std::collections::BTreeSet;

use hearth_api::ids::{InstanceId, ProjectId, TokenId, VmId};
use serde_json::{Map, Value, json};

use super::examples::{THEN, claim_explained, pool_explained, recipe};
use super::openapi::{PATH, SETTINGS_PATH, reach, schema_name};

const CREATED: &str = "2026-11-02T09:00:00.000Z";
const LATER: &str = "2026-11-02T09:01:12.480Z";

/// Completes what the handlers say.
pub fn complete(document: &mut Value) {
    lists_refer_to_their_items(&mut document["components"]["schemas"]);
    merge_created_token(&mut document["components"]["schemas"]);
    close_replies(document);
    add_examples(document);
    // No standard key says what the messages of a WebSocket are.
    for (path, message) in [("terminal", "TerminalMessage"), ("exec", "ExecMessage")] {
        let operation = &mut document["paths"][format!("/api/v1/instances/{{id}}/{path}")]["get"];
        operation["responses"]["101"]["x-message-data"] = json!({ "$ref": format!("#/components/schemas/{message}") });
    }
}

/// The paths that serve documents.
pub fn document_paths() -> Map<String, Value> {
    let get = |id: &str, summary: &str, content_type: &str, schema: Value| {
        json!({ "get": {
            "tags": ["server"], "operationId": id, "summary": summary,
            "responses": { "200": {
                "description": "The document",
                "content": { content_type: { "schema": schema } }
            } }
        } })
    };
    let object = json!({ "type": "object" });
    [
        (
            PATH,
            get("get_openapi", "This document", "application/json", object.clone()),
        ),
        (
            SETTINGS_PATH,
            get(
                "get_settings_schema",
                "The JSON schema of a repository's settings file",
                "application/json",
                object,
            ),
        ),
        (
            "/docs/",
            get(
                "get_docs",
                "This document as a page for people",
                "text/html",
                json!({ "type": "string" }),
            ),
        ),
    ]
    .into_iter()
    .map(|(path, item)| (path.to_owned(), item))
    .collect()
}

/// The derive writes an item's whole schema into each list of it.
fn lists_refer_to_their_items(schemas: &mut Value) {
    let Some(schemas) = schemas.as_object_mut() else {
        return;
    };
    for (name, schema) in schemas {
        if let Some(item) = name.strip_prefix("Page_").or_else(|| name.strip_prefix("Items_")) {
            schema["properties"]["items"]["items"] = json!({ "$ref": format!("#/components/schemas/{item}") });
        }
    }
}

/// A new token is its record and one key more. Written as `allOf`, its record could not be closed.
fn merge_created_token(schemas: &mut Value) {
    let mut whole = schemas["TokenItem"].clone();
    let created = schemas["TokenCreated"].take();
    whole["description"] = created["description"].clone();
    for part in created["allOf"].as_array().into_iter().flatten() {
        for (name, schema) in part["properties"].as_object().into_iter().flatten() {
            whole["properties"][name] = schema.clone();
        }
        if let (Some(all), Some(more)) = (whole["required"].as_array_mut(), part["required"].as_array()) {
            all.extend(more.iter().cloned());
        }
    }
    schemas["TokenCreated"] = whole;
}

/// A reply never has a key that its schema does not name. What requests share with replies stays open, since a client may
/// send more than we know, and so does the settings file, which is published as a schema of its own.
fn close_replies(document: &mut Value) {
    let schemas = &document["components"]["schemas"];
    let mut open = BTreeSet::new();
    reach(&json!({ "$ref": "#/components/schemas/Settings" }), schemas, &mut open);
    let items = document["paths"].as_object().into_iter().flat_map(Map::values);
    for operation in items.filter_map(Value::as_object).flat_map(Map::values) {
        reach(&operation["requestBody"], schemas, &mut open);
        reach(&operation["parameters"], schemas, &mut open);
    }
    let schemas = document["components"]["schemas"].as_object_mut();
    for (name, schema) in schemas.into_iter().flatten() {
        if !open.contains(name) && schema["type"] == "object" && schema.get("additionalProperties").is_none() {
            schema["additionalProperties"] = json!(false);
        }
    }
}

fn add_examples(document: &mut Value) {
    let items = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for operation in items.filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        let replies = operation["responses"].as_object_mut().into_iter().flatten();
        let good = replies.filter(|(status, _)| status.starts_with('2'));
        let contents = good.filter_map(|(_, reply)| reply["content"].as_object_mut());
        for (content_type, content) in contents.flatten() {
            if content_type == "text/event-stream" {
                let (example, event) = events(&id);
                content["example"] = json!(example);
                // No standard key says what the data of an event is.
                content["schema"]["x-event-data"] = json!({ "$ref": format!("#/components/schemas/{event}") });
                continue;
            }
            let schema = content["schema"]["$ref"].as_str().and_then(schema_name).unwrap_or(&id);
            if let Some(example) = example(schema) {
                content["example"] = example;
            }
        }
    }
}

fn events(operation: &str) -> (&'static str, &'static str) {
    if operation == "exec_in_instance" {
        let example = "event: stdout\ndata: aGkK\n\n\
                       event: exit\ndata: {\"exitCode\":0,\"signal\":null,\"durationMs\":4,\"error\":null,\"timedOut\":false,\"oomKilled\":false,\"log\":null}\n\n";
        return (example, "ExecExit");
    }
    if operation == "watch_files" {
        let example = "event: start\ndata: {\"kind\":\"start\",\"path\":\"\",\"from\":null,\"isDirectory\":false}\n\n\
                       event: write\ndata: {\"kind\":\"write\",\"path\":\"src/main.js\",\"from\":null,\"isDirectory\":false}\n\n";
        return (example, "FileChange");
    }
    (
        "event: stepStarted\ndata: {\"kind\":\"stepStarted\",\"name\":\"create_vm\",\"subject\":null}\n\n\
         event: ended\ndata: {\"kind\":\"ended\",\"status\":\"ready\",\"failureReason\":null}\n\n",
        "FollowEvent",
    )
}

fn instance() -> InstanceId {
    InstanceId::example(4)
}

fn project_id() -> ProjectId {
    ProjectId::example(1)
}

/// An example of a reply, by its schema's name or, where it has none, the operation.
fn example(schema: &str) -> Option<Value> {
    let status = json!({ "ready": 2, "provisioning": 1, "failed": 0 });
    let config = json!({
        "enabled": true, "targetSize": 3, "maxAgeMinutes": 60, "branch": null,
        "setupCommands": [{ "name": "build", "command": "npm ci" }], "createdAt": CREATED, "updatedAt": LATER
    });
    let checkout = json!({
        "repoFullName": "acme/app", "branch": "main", "commit": THEN, "path": "/home/app"
    });
    let item = |item: Value| json!({ "items": [item] });
    Some(match schema {
        "Project" => project(),
        "Page_Project" => json!({ "items": [project()], "nextCursor": null, "hasMore": false }),
        "Items_RepoBranches" => item(json!({
            "repoFullName": "acme/app", "branch": "main", "isThere": true, "branches": ["main", "topic"]
        })),
        "ProjectDeleted" => json!({ "deleted": true, "id": project_id() }),
        "Items_VariableItem" => item(json!({
            "name": "API_KEY", "configured": true, "updatedAt": CREATED, "lastUpdatedByUserId": "ada"
        })),
        "VariableDeleted" => json!({ "deleted": true, "name": "API_KEY" }),
        "SetupView" => json!({
            "source": "setup",
            "legacyHooks": { "status": "none", "repositories": [], "checkComplete": true },
            "setup": { "vmSize": "medium", "repositories": [{
                "repository": "acme/app", "branch": "main",
                "scripts": { "initialize": "npm ci", "updateAfterCheckout": "npm ci", "startup": null },
                "commands": [{ "name": "test", "command": "npm test" }]
            }] }
        }),
        "PoolView" => json!({
            "allowed": true, "config": config, "status": status,
            "metadata": { "lastProvisionedAt": LATER, "lastClaimedAt": null }
        }),
        "PatchPoolReply" => json!({ "config": config, "status": status }),
        "TestReply" => json!({ "id": instance() }),
        "ClearReply" => json!({ "cleared": 3, "status": { "ready": 0, "provisioning": 0, "failed": 0 } }),
        "Items_InstanceItem" => item(json!({
            "id": instance(), "instanceId": VmId::example(5), "status": "ready", "isTest": false, "failureReason": null,
            "provisionedAt": LATER, "createdAt": CREATED
        })),
        "InstanceDetail" => failed_instance(),
        "InstanceView" => json!({
            "id": instance(), "instanceId": VmId::example(5), "projectId": project_id(), "status": "claimed", "isTest": false,
            "recipe": recipe(THEN), "repos": [checkout], "settings": [], "failure": null, "expiresAt": LATER, "unresponsive": null,
            "rebootedAt": null, "vmEndedAt": null, "vmEndedBecause": null,
            "commands": [{ "name": "test", "command": "npm test", "repoFullName": "acme/app", "path": "/home/app" }]
        }),
        "BootEnded" => json!({ "id": instance(), "cancelled": true, "status": "failed" }),
        "ProjectView" => json!({
            "id": project_id(), "name": "web", "description": null, "taskCode": "WEB",
            "repos": [{
                "repoFullName": "acme/app", "branch": "main", "url": "https://git.example.org/acme/app.git",
                "lfs": true, "submodules": true
            }],
            "image": null, "projectSetup": null, "vmSize": "small", "maxVms": null,
            "gitIdentity": { "name": "Shop Agent", "email": "agent@example.org" },
            "createdAt": CREATED, "updatedAt": LATER
        }),
        "TemplateList" => json!({
            "items": [{
                "key": "0604d4f1d65afc8849a04067b5d7ebc6d8698074a5739885d73ab7f8a4e1df10",
                "parent": "769c97fa910e5d1b6f8c3a20b7e14d9054f3ab6c1e8d72904fb5a6c3d2e1f009",
                "projectId": "prj_01a209b7e85e718e81af7e694ccb2946", "stage": "warm_pool_setup 3",
                "recipes": ["6d4087e038b9e560"], "needed": true, "bytes": 135_685_120,
                "createdAt": "2026-11-24T09:34:55.012Z", "lastUsedAt": "2026-11-24T09:40:12.345Z"
            }],
            "diskBytes": 614_465_536, "diskLimitBytes": 21_474_836_480_u64, "faults": []
        }),
        "TemplatesVerified" => json!({ "checked": 5, "damaged": 0 }),
        "PoolExplained" => pool_explained(),
        "ClaimExplained" => claim_explained(&instance(), &project_id()),
        "RetryReply" => json!({ "status": { "ready": 2, "provisioning": 0, "failed": 3 } }),
        "ClaimReply" => json!({
            "id": instance(), "instanceId": VmId::example(5), "source": "ready", "recipe": recipe(THEN), "ageMs": 840_000,
            "waitMs": 0, "repos": [checkout], "expiresAt": "2026-11-02T21:00:00.000Z",
            "agent": {
                "exec": format!("/api/v1/instances/{}/exec", instance()),
                "files": format!("/api/v1/instances/{}/files", instance()),
                "terminal": format!("/api/v1/instances/{}/terminal", instance()),
                "ports": format!("/api/v1/instances/{}/ports", instance())
            }
        }),
        "Heartbeat" => json!({ "id": instance(), "expiresAt": "2026-11-02T21:30:00.000Z" }),
        "Items_ProjectFound" => item(json!({ "id": project_id(), "name": "web" })),
        "Items_InstanceFound" => item(json!({
            "id": instance(), "projectId": project_id(), "projectName": "web", "status": "claimed", "taskId": "task-4711",
            "claimedAt": CREATED
        })),
        "Items_ClaimItem" => item(json!({
            "id": instance(), "projectId": project_id(), "projectName": "web", "taskId": "task-4711", "owner": "ada",
            "claimedAt": CREATED, "expiresAt": "2026-11-02T21:00:00.000Z", "unresponsive": null, "rebootedAt": null
        })),
        "Released" => json!({ "id": instance(), "released": true }),
        "Items_InstanceLog" => item(json!({
            "name": "exec-1", "kind": "exec", "command": "bash -c python3 -m http.server 9000 & sleep 1", "bytes": 184,
            "droppedBytes": 0, "open": true, "updatedAt": LATER
        })),
        "read_instance_log" => json!("Serving HTTP on 0.0.0.0 port 9000\n"),
        "read_file" => json!("# web\n"),
        "FileEntry" => file("README.md", "file", 6),
        "FileList" => json!({
            "items": [file("README.md", "file", 6), file("src", "directory", 4096)], "truncated": false, "unreadable": []
        }),
        "read_folder" => json!("README.md\u{0}…"),
        "TarUnpacked" => json!({ "files": 12, "bytes": 48_213, "leftOut": 0, "failed": 0, "named": [] }),
        "FileRemoved" => json!({ "removed": true, "path": "/home/app/dist" }),
        "ExecReply" => json!({
            "exitCode": 0, "signal": null, "stdout": "ok\n", "stderr": "", "stdoutBase64": null,
            "stderrBase64": null, "durationMs": 412, "truncated": false, "timedOut": false, "oomKilled": false, "log": null, "error": null
        }),
        "Items_TokenItem" => item(token()),
        "TokenCreated" => {
            let mut created = token();
            created["token"] = json!("hearth_…");
            created
        }
        "TokenRevoked" => json!({ "id": token()["id"], "revoked": true }),
        "GitHookReply" => json!({ "repositories": 1 }),
        "Health" => json!({ "status": "ok" }),
        "get_openapi" => json!({ "openapi": "3.1.0", "info": { "title": "Hearth", "version": "0.1.0" }, "paths": {} }),
        "get_settings_schema" => json!({ "title": "Hearth repository settings", "type": "object" }),
        "get_docs" => json!("<!doctype html>"),
        _ => return None,
    })
}

fn project() -> Value {
    json!({
        "id": project_id(), "name": "web", "description": null, "taskCode": "WEB",
        "repos": [{ "repoFullName": "acme/app", "branch": "main" }], "createdAt": CREATED, "updatedAt": LATER
    })
}

fn file(name: &str, kind: &str, size: u64) -> Value {
    json!({
        "name": name, "nameBase64": null, "path": format!("/home/app/{name}"), "kind": kind, "size": size, "mode": "0644", "uid": 0,
        "gid": 0, "owner": "root", "group": "root", "modifiedAt": CREATED, "symlinkTarget": null
    })
}

fn token() -> Value {
    json!({
        "id": TokenId::example(6), "name": "ci", "owner": "ada", "tenant": "default",
        "scopes": ["claim"], "projectId": project_id(), "createdAt": CREATED, "lastUsedAt": null, "expiresAt": null
    })
}

fn failed_instance() -> Value {
    let error = "exit code 1: npm error missing script: build";
    json!({
        "id": instance(), "instanceId": VmId::example(5), "status": "failed", "isTest": true, "failureReason": error, "createdAt": CREATED,
        "summary": {
            "success": false, "totalDurationMs": 72_480, "failedStep": "warm_pool_setup", "error": error,
            "completedSteps": 1, "totalSteps": 2
        },
        "steps": [
            { "name": "create_vm", "status": "success", "durationMs": 1_900, "timestamp": CREATED,
              "metadata": { "driver": "qemu", "vcpus": 2, "memoryMib": 2048 } },
            { "name": "warm_pool_setup", "status": "error", "error": error, "durationMs": 5_120, "timestamp": LATER,
              "output": "npm error missing script: build\n" }
        ]
    })
}
