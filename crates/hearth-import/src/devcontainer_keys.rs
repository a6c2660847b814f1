//! Keys of `devcontainer.json` that say nothing about a VM, each with the reason.

/// Why a key is not taken.
pub(crate) fn why_not(key: &str) -> &'static str {
    match key {
        "initializeCommand" => "it runs on the machine that opens the container; a VM has none",
        "postAttachCommand" => "it runs when an editor connects",
        "customizations" | "extensions" | "settings" => "it is for an editor",
        "mounts" | "workspaceMount" => "a VM has no folders of the host",
        "workspaceFolder" => "the checkout of a VM is below /home",
        "runArgs" | "capAdd" | "securityOpt" | "privileged" | "init" | "overrideCommand" | "updateRemoteUserUID" => {
            "an option of a container's; in a VM everything is allowed"
        }
        "service" | "runServices" | "shutdownAction" => "it is about containers",
        "userEnvProbe" | "waitFor" | "otherPortsAttributes" => "it is for an editor",
        "secrets" => "it recommends variables; give them with `hearth env set`",
        _ => "the key is not known",
    }
}

/// The same of a key in `hostRequirements`.
pub(crate) fn why_not_now(key: &str) -> &'static str {
    match key {
        "gpu" => "a VM has no GPU",
        _ => "the key is not known",
    }
}
