//! Giving a fork an identity of its own: host name, machine id, boot id, randomness and host keys.

use hearth_api::ids::VmId;
use hearth_guest::Activated;
use hearth_guest::client::{AgentClient, AgentError, NewIdentity};

use super::connections::Connections;
use super::host_keys::HostKeys;

/// The file of an SSH server's RSA key.
const RSA_HOST_KEY: &str = "ssh_host_rsa_key";

/// Gives the VM an identity of its own. After an error the VM must not be used: it may still be somebody else in part.
pub async fn assign(
    connections: &Connections,
    keys: &HostKeys,
    vm: &VmId,
    agent: &AgentClient,
) -> Result<Activated, AgentError> {
    let identity = NewIdentity {
        hostname: vm.to_string(),
        machine_id: None,
        rsa_host_key: keys.take_spare(),
    };
    let activated = agent.activate(&identity).await?;
    connections.note_boot(vm, &activated.boot_id).await;
    install_rsa_host_key(keys, vm, agent, identity, &activated).await?;
    Ok(activated)
}

/// Where an SSH server had an RSA key and none was at hand, it is brought now. One that is not needed is kept for another VM.
async fn install_rsa_host_key(
    keys: &HostKeys,
    vm: &VmId,
    agent: &AgentClient,
    identity: NewIdentity,
    activated: &Activated,
) -> Result<(), AgentError> {
    if !activated.lacks_rsa_host_key {
        let is_used = activated.host_keys.iter().any(|name| name == RSA_HOST_KEY);
        if let Some(key) = identity.rsa_host_key.filter(|_| !is_used) {
            keys.give_back(key);
        }
        return Ok(());
    }
    match keys.make().await {
        Ok(key) => agent.set_rsa_host_key(&key).await,
        Err(error) => {
            // It has others, and answers with none of its template's.
            tracing::warn!(%vm, %error, "a VM's SSH server goes without an RSA key");
            Ok(())
        }
    }
}
