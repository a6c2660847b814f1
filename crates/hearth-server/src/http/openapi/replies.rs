//! What the published document says of replies: an example of each, no key that is not named, and the paths that have no
//! handler of their own to be read from. The replies' types say the rest.

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_api::exec::{ExecExit, ExecMessage};
use hearth_api::file::{FileChange, FileChangeKind};
use hearth_api::ids::{InstanceId, ProjectId, TokenId, VmId};
use hearth_api::instance::{FollowEvent, InstanceStatus};
use hearth_api::port::TunnelMessage;
use hearth_api::session::{Session, SessionMessage};
use hearth_api::settings::Settings;
use hearth_api::terminal::TerminalMessage;
use hearth_core::stages::Work;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema as _;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, PathItem, Paths};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::examples::{THEN, claim_explained, pool_explained, recipe};
use super::{PATH, SETTINGS_PATH, reach, schema_name, watching};

const CREATED: &str = "2026-11-02T09:00:00.000Z";
const LATER: &str = "2026-11-02T09:01:12.480Z";

/// The paths that serve documents.
pub fn document_paths() -> [(String, PathItem); 3] {
    let get = |path: &str, id: &str, summary: &str, content_type: &str, schema: Type| {
        let schema = ObjectBuilder::new().schema_type(schema);
        let content = ContentBuilder::new().schema(Some(schema));
        let response = ResponseBuilder::new()
            .description("The document")
            .content(content_type, content);
        let operation = OperationBuilder::new()
            .tag("server")
            .operation_id(Some(id))
            .summary(Some(summary))
            .response("200", response);
        (path.to_owned(), PathItem::new(HttpMethod::Get, operation))
    };
    const JSON: &str = "application/json";
    [
        get(PATH, "get_openapi", "This document", JSON, Type::Object),
        get(
            SETTINGS_PATH,
            "get_settings_schema",
            "The JSON schema of a repository's settings file",
            JSON,
            Type::Object,
        ),
        get(
            "/docs/",
            "get_docs",
            "This document as a page for people",
            "text/html",
            Type::String,
        ),
    ]
}

/// A reply never has a key that its schema does not name. What requests share with replies stays open, since a client may
/// send more than we know, and so does the settings file, which is published as a schema of its own.
pub fn close(components: &mut Components, paths: &Paths) {
    let schemas = json!(components.schemas);
    let mut open = BTreeSet::new();
    reach(&json!(Ref::from_schema_name(Settings::name())), &schemas, &mut open);
    let operations = paths.paths.values().flat_map(|item| {
        let all = [&item.get, &item.put, &item.post, &item.delete, &item.patch];
        all.into_iter().flatten()
    });
    for operation in operations {
        reach(&json!(operation.request_body), &schemas, &mut open);
        reach(&json!(operation.parameters), &schemas, &mut open);
    }
    for (name, schema) in &mut components.schemas {
        if let RefOr::T(Schema::Object(object)) = schema
            && !open.contains(name)
            && object.schema_type == SchemaType::Type(Type::Object)
            && object.additional_properties.is_none()
        {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

/// Gives the good replies of an operation their examples, and says what the messages of its streams are.
pub fn describe(operation: &mut Operation) {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    let good = operation.responses.responses.iter_mut();
    for (status, response) in good {
        let RefOr::T(response) = response else { continue };
        // No standard key says what the messages of a WebSocket are.
        if status == "101" {
            let message = match id {
                "open_terminal" => TerminalMessage::name(),
                "attach_session" => SessionMessage::name(),
                "open_tunnel" | "open_ssh" => TunnelMessage::name(),
                _ => ExecMessage::name(),
            };
            response.extensions = Some(Extensions::from_iter([("x-message-data", refers_to(&message))]));
        }
        if !status.starts_with('2') {
            continue;
        }
        for (content_type, content) in &mut response.content {
            let RefOr::T(content) = content else { continue };
            if content_type == "text/event-stream" {
                let (example, event) = events(id);
                content.example = Some(example.into());
                // No standard key says what the data of an event is.
                if let Some(RefOr::T(Schema::Object(object))) = &mut content.schema {
                    object.extensions = Some(Extensions::from_iter([("x-event-data", refers_to(&event))]));
                }
                continue;
            }
            let schema = match &content.schema {
                Some(RefOr::Ref(reference)) => schema_name(&reference.ref_location),
                _ => None,
            };
            if let Some(example) = example(schema.unwrap_or(id)) {
                content.example = Some(example);
            }
        }
    }
}

fn refers_to(schema: &str) -> Value {
    json!(Ref::from_schema_name(schema))
}

/// One event as it is sent. Plain structs: serialising them cannot fail.
fn event(name: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

/// Examples of what a stream sends, and the name of its events' schema.
fn events(operation: &str) -> (String, Cow<'static, str>) {
    if operation == "exec_in_instance" {
        let end = ExecExit {
            exit_code: Some(0),
            duration_ms: 4,
            ..ExecExit::default()
        };
        let example = format!("event: stdout\ndata: {}\n\n", STANDARD.encode("hi\n")) + &event("exit", &end);
        return (example, ExecExit::name());
    }
    if operation == "watch_files" {
        let change = |kind, path: &str| FileChange {
            kind,
            path: path.to_owned(),
            from: None,
            is_directory: false,
        };
        let example = event("start", &change(FileChangeKind::Start, ""))
            + &event("write", &change(FileChangeKind::Write, "src/main.js"));
        return (example, FileChange::name());
    }
    if operation == "read_session_output" {
        let example = format!("event: stdout\ndata: {}\n\n", STANDARD.encode("hi\n")) + &event("end", &session());
        return (example, Session::name());
    }
    if operation == "watch_events" {
        return watching::stream();
    }
    let started = FollowEvent::StepStarted {
        name: "create_vm".to_owned(),
        subject: None,
        ran_ms: 0,
    };
    let ended = FollowEvent::Ended {
        status: Some(InstanceStatus::Ready),
        failure_reason: None,
    };
    let example = event("stepStarted", &started) + &event("ended", &ended);
    (example, FollowEvent::name())
}

fn named_checkpoint() -> Value {
    json!({
        "projectId": project_id(), "name": "before-upgrade", "note": "tests pass", "instanceId": instance(), "owner": "ada",
        "bytes": 262_144_000, "createdAt": CREATED
    })
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
        "Items_ServerItem" => item(json!({
            "id": "srv_3f0c2a9b1d4e", "place": "box1:/var/lib/hearth", "url": "https://box1.example:7717", "version": "0.1.0",
            "alive": true, "answers": true, "startedAt": CREATED, "aliveUntil": LATER, "pools": 12, "vms": 80, "memoryMib": 196_608
        })),
        "ProjectDeleted" => json!({ "deleted": true, "id": project_id() }),
        "Items_VariableItem" => item(json!({
            "name": "API_KEY", "configured": true, "updatedAt": CREATED, "lastUpdatedByUserId": "ada"
        })),
        "VariableDeleted" => json!({ "deleted": true, "name": "API_KEY" }),
        "Items_CredentialItem" => item(json!({
            "host": "github.com", "kind": "token", "username": null, "allowHttp": false, "fingerprint": null, "updatedAt": CREATED,
            "lastUpdatedByUserId": "ada"
        })),
        "ProjectEgress" => json!({
            "mode": "allow", "hosts": ["github.com", "*.npmjs.org"], "cidrs": ["203.0.113.0/24"], "updatedAt": CREATED, "pending": []
        }),
        "InstanceEgress" => json!({
            "policy": { "mode": "allow", "hosts": ["github.com", "*.npmjs.org"], "cidrs": ["203.0.113.0/24"] }, "upToDate": true,
            "refused": [
                { "target": "example.com", "protocol": "dns", "count": 2, "firstAt": CREATED, "lastAt": CREATED },
                { "target": "8.8.8.8:53", "protocol": "udp", "count": 1, "firstAt": CREATED, "lastAt": CREATED }
            ],
            "more": false
        }),
        "CredentialDeleted" => json!({ "deleted": true, "host": "github.com" }),
        "SetupView" => json!({
            "source": "setup",
            "legacyHooks": { "status": "none", "repositories": [], "checkComplete": true },
            "setup": { "vmSize": "medium", "repositories": [{
                "repository": "acme/app", "branch": "main",
                "scripts": { "initialize": "npm ci", "updateAfterCheckout": "npm ci", "startup": null },
                "commands": [{ "name": "test", "command": "npm test" }]
            }] }
        }),
        "SetupImport" => json!({ "repositories": [{
            "repository": "acme/app", "branch": "main", "files": [".cursor/environment.json"],
            "setupCommands": [{ "name": "install of .cursor/environment.json", "command": "cd /home/app\nnpm ci" }],
            "scripts": { "initialize": null, "updateAfterCheckout": null, "startup": "npm run dev" }, "vmSize": null,
            "taken": [".cursor/environment.json: install: a set-up command"],
            "notTaken": [".cursor/environment.json: snapshot: not taken: Hearth makes its own"], "problem": null
        }] }),
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
            "leaseWarningMinutes": 10, "paused": false, "pausedToDisk": false, "pausedBecause": null, "rebootedAt": null, "vmEndedAt": null,
            "vmEndedBecause": null,
            "commands": [{ "name": "test", "command": "npm test", "repoFullName": "acme/app", "path": "/home/app" }]
        }),
        "BootEnded" => json!({ "id": instance(), "cancelled": true, "status": "failed" }),
        "ProjectView" => json!({
            "id": project_id(), "name": "web", "description": null, "taskCode": "WEB",
            "repos": [{
                "repoFullName": "acme/app", "branch": "main", "url": "https://git.example.org/acme/app.git",
                "lfs": true, "submodules": true
            }],
            "image": null, "projectSetup": null, "vmSize": "small", "maxVms": null, "maxClaims": 5, "idlePauseMinutes": 30,
            "idlePauseToDisk": false, "leaseWarningMinutes": 10,
            "gitIdentity": { "name": "Shop Agent", "email": "agent@example.org" },
            "createdAt": CREATED, "updatedAt": LATER
        }),
        "TemplateList" => json!({
            "items": [{
                "key": "0604d4f1d65afc8849a04067b5d7ebc6d8698074a5739885d73ab7f8a4e1df10",
                "parent": "769c97fa910e5d1b6f8c3a20b7e14d9054f3ab6c1e8d72904fb5a6c3d2e1f009",
                "projectId": project_id(), "stage": Work::Pool(2).to_string(),
                "recipes": [recipe(THEN)], "needed": true, "bytes": 135_685_120,
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
            "claimedAt": CREATED, "expiresAt": "2026-11-02T21:00:00.000Z", "leaseWarningMinutes": 10, "leaseEndsSoon": false,
            "unresponsive": null, "paused": false, "pausedToDisk": false, "pausedBecause": null, "rebootedAt": null,
            "vmEndedAt": null, "vmEndedBecause": null
        })),
        "Paused" => json!({ "id": instance(), "paused": true, "toDisk": false }),
        "ForkReply" => {
            let claim = example("ClaimReply")?;
            json!({ "parent": instance(), "pausedMs": 240, "items": [{ "taskId": "attempts-1", "claim": claim }] })
        }
        "NamedCheckpointItem" => named_checkpoint(),
        "Items_NamedCheckpointItem" => item(named_checkpoint()),
        "CheckpointDeleted" => json!({ "deleted": true, "name": "before-upgrade" }),
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
        "InstancePorts" => json!({
            "items": [{
                "port": 3000, "address": "0.0.0.0", "processId": 812, "process": "node", "command": "node server.js", "user": "root",
                "url": format!("https://hearth.example.org/api/v1/instances/{}/ports/3000/", instance())
            }],
            "previews": [{
                "name": "app", "repoFullName": "acme/app", "port": 3000, "listening": true,
                "url": format!("https://hearth.example.org/api/v1/instances/{}/ports/3000/", instance())
            }]
        }),
        "Share" => json!({
            "url": format!("https://hearth.example.org/api/v1/instances/{}/ports/3000/?hearth_share=…", instance()), "port": 3000,
            "expiresAt": LATER
        }),
        "SshAllowed" => json!({
            "hostKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"]
        }),
        "FileRemoved" => json!({ "removed": true, "path": "/home/app/dist" }),
        "ExecReply" => json!({
            "exitCode": 0, "signal": null, "stdout": "ok\n", "stderr": "", "stdoutBase64": null,
            "stderrBase64": null, "durationMs": 412, "truncated": false, "timedOut": false, "oomKilled": false, "log": null, "error": null
        }),
        "Session" => session(),
        "Items_Session" => item(session()),
        "SessionRemoved" => json!({ "id": "s-1f0c9a3e", "removed": true }),
        "SignalSent" => json!({ "id": "s-1f0c9a3e", "processes": 3 }),
        "read_session_output" => json!("added 412 packages in 9s\n"),
        "Items_Process" => item(json!({
            "pid": 812, "parent": 1, "user": "root", "state": "S", "rssKib": 48_120, "cpuMs": 2_310, "startedAt": CREATED,
            "command": "node server.js", "session": "s-1f0c9a3e"
        })),
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
        other => return watching::example(other),
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

fn session() -> Value {
    json!({
        "id": "s-1f0c9a3e", "tag": "build", "pid": 812, "argv": ["bash", "-c", "npm run build"], "cwd": "/home/app", "user": "root",
        "status": "running", "exit": null, "terminal": null, "stdinOpen": false, "timeoutSeconds": null, "startedAt": CREATED,
        "endedAt": null, "outputBytes": 18_250, "droppedBytes": 0, "outputOpen": true, "readers": 1
    })
}

fn token() -> Value {
    json!({
        "id": TokenId::example(6), "name": "ci", "owner": "ada", "tenant": "default",
        "scopes": ["claim"], "projectId": project_id(), "namePrefix": null, "maxVms": null, "createdAt": CREATED, "lastUsedAt": null, "expiresAt": null
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
