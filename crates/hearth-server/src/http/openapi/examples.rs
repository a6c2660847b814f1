//! Examples of the longer replies, for the published document.

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::project::VmSize;
use hearth_core::recipe::{Recipe, RecipeRepo, ResolvedInputs};
use serde_json::{Value, json};

/// The newest commit of an example, and the one before.
const NOW: &str = "1a2b3c4d6f4b7d2c9e3a5b8d1f6c4e2a7b9d0c3e";
pub const THEN: &str = "8c5f0a1e6f4b7d2c9e3a5b8d1f6c4e2a7b9d0c3e";

/// The recipe of an example that was made from this commit.
pub fn recipe(commit: &str) -> String {
    let repository = RecipeRepo {
        url: "https://git.example.org/acme/app.git",
        branch: "main",
        path: "/home/app",
        lfs: true,
        submodules: true,
        initialize: None,
        startup: None,
    };
    let recipe = Recipe {
        image: None,
        size: VmSize::Small,
        repositories: vec![repository],
        variables_version: 1,
        git_identity: None,
        project_setup: &[],
        legacy_hooks: false,
        pool_setup: &[],
        imports: None,
        resolved: ResolvedInputs {
            environment: Some("an example"),
            commits: vec![Some(commit)],
            epoch: 0,
        },
    };
    recipe.name()
}

pub fn pool_explained() -> Value {
    let (wanted, before, failed) = (recipe(NOW), recipe(THEN), InstanceId::example(17));
    let checkout = json!({ "repoFullName": "acme/app", "branch": "main", "commit": THEN, "path": "/home/app" });
    let behind = json!([{ "repoFullName": "acme/app", "branch": "main", "commit": THEN, "behind": 1 }]);
    let condition = |kind: &str, status: bool, message: &str| json!({ "type": kind, "status": status, "since": "2026-11-24T09:34:55.012Z", "message": message });
    json!({
        "summary": format!("the set-up fails since the push of 1a2b3c4 to acme/app (warm_pool_setup: the command `build` ended with exit \
                            code 7: boom); 1 VM of the recipe before keeps serving; `hearth pool instance web {failed} --log` shows why"),
        "status": { "ready": 1, "provisioning": 0, "failed": 3 },
        "target": 1,
        "waitingClaims": 0,
        "conditions": [
            condition("Full", true, "1 of 1 is ready"),
            condition("Fresh", false, "1 of 1 ready VM is of an older recipe"),
            condition("BreakerOpen", true, "after 3 failures in a row (warm_pool_setup: the command `build` ended with exit code \
                                           7: boom) it is tried again at 2026-11-24T09:40:10Z; mend the \
                                           set-up, or try at once with `hearth pool retry web`")
        ],
        "recipe": wanted,
        "servingRecipe": before,
        "templates": [{
            "recipe": before, "key": "0604d4f1d65afc8849a04067b5d7ebc6d8698074a5739885d73ab7f8a4e1df10", "serving": true,
            "repos": [checkout], "createdAt": "2026-11-24T08:12:07.440Z"
        }],
        "repositories": [{
            "repoFullName": "acme/app", "branch": "main", "commit": NOW, "since": "2026-11-24T09:34:51.900Z"
        }],
        "instances": [
            {
                "id": InstanceId::example(4), "status": "ready", "isTest": false, "recipe": before,
                "current": false, "atWork": null, "repos": behind, "memoryMib": 54, "ageMs": 4_970_000, "sinceMs": 4_960_000,
                "generation": 2, "missed": 0, "unresponsive": null, "rebootedAt": null, "keptUntil": null,
                "vmEndedAt": null, "vmEndedBecause": null
            },
            {
                "id": failed, "status": "failed", "isTest": false, "recipe": wanted, "current": true, "atWork": null, "repos": [],
                "memoryMib": 2048, "ageMs": 61_000, "sinceMs": 40_000, "generation": 2, "missed": 0, "unresponsive": null, "rebootedAt": null,
                "keptUntil": "2026-11-24T10:05:16.000Z", "vmEndedAt": null, "vmEndedBecause": null
            }
        ],
        "decisions": [{
            "at": "2026-11-24T09:35:30.120Z", "firstAt": "2026-11-24T09:35:16.003Z", "count": 6, "action": "wait",
            "reason": "the set-up failed 3 times in a row; no more VMs are made by it until it changes, some time has passed or \
                       `hearth pool retry` says so",
            "instance": null, "recipe": null,
            "inputs": {
                "target": 1, "ready": 1, "making": 0, "recipeFailures": 3, "hostFailures": 0, "vmsLeft": 498,
                "memoryLeftMib": 15_976, "provisionsLeft": 1, "forksLeft": 4, "startsLeft": 120
            }
        }],
        "host": {
            "vms": 2, "maxVms": 500, "memoryMib": 2102, "maxMemoryMib": 18_078,
            "claimedMemory": "a claimed VM counts with the memory that it uses now and 50 % of what it may still take up to its size \
                              (`hearth serve --claimed-reserve`)", "provisions": 0, "maxProvisions": 1,
            "forks": 0, "maxForks": 4, "templateDiskBytes": 614_465_536, "maxTemplateDiskBytes": 21_474_836_480_u64,
            "clockJumpedAt": null, "clockJumpedByMs": null
        }
    })
}

pub fn claim_explained(instance: &InstanceId, project: &ProjectId) -> Value {
    let phase = |name: &str, ms: f64| json!({ "name": name, "ms": ms });
    json!({
        "id": instance, "projectId": project, "source": "ready", "claimedAt": "2026-11-24T09:34:55.012Z", "endedAt": null,
        "why": "3 ready, 3 of the target recipe; the oldest of the target recipe was taken",
        "handOver": {
            "ready": 3, "readyCurrent": 3, "strict": false, "miss": "prefer", "current": true, "template": null,
            "skipped": [], "cause": null,
            "phases": [
                phase("wait", 0.01), phase("take", 1.92), phase("resume", 0.84), phase("connect", 0.02),
                phase("variables", 0.09), phase("prepare", 0.61), phase("checkouts", 0.12), phase("scripts", 0.01)
            ],
            "totalMs": 3.64
        }
    })
}
