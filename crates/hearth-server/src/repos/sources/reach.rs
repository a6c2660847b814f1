//! Starting a process that the kernel lets connect to one port alone (Landlock, Linux 6.7): whatever it or its helpers think of
//! the proxy that they are given, there is no way around it.

use std::io::{Error, Result};

use landlock::{AccessNet, NetPort, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What a process may connect to.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// The port, on any address: the process knows of one.
    pub port: u16,
    /// Rather nothing is started than something that a kernel without Landlock would let connect to others.
    pub is_strict: bool,
}

impl Reach {
    /// Starts it.
    pub async fn spawn(self, mut command: Command) -> Result<Child> {
        let (sender, receiver) = oneshot::channel();
        let handle = Handle::current();
        // What a thread gives up is given up for ever, and for what it starts: this one is for one process.
        std::thread::Builder::new().name("reach".to_owned()).spawn(move || {
            let _entered = handle.enter();
            let child = self.narrow().and_then(|()| command.spawn());
            // Nobody waits any more: the process ends with its handle.
            let _ = sender.send(child);
        })?;
        receiver.await.map_err(Error::other)?
    }

    fn narrow(self) -> Result<()> {
        let narrowed = Ruleset::default()
            .handle_access(AccessNet::ConnectTcp)
            .and_then(Ruleset::create)
            .and_then(|rules| rules.add_rule(NetPort::new(self.port, AccessNet::ConnectTcp)))
            .and_then(landlock::RulesetCreated::restrict_self);
        match narrowed {
            Ok(status) if status.ruleset == RulesetStatus::FullyEnforced || !self.is_strict => Ok(()),
            Ok(_) => Err(Error::other(
                "it gets around the check of addresses, which this server's kernel cannot keep it from (Linux 6.7 with Landlock can)",
            )),
            Err(error) => Err(Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a shell that reaches one port connects to another; `None` where the kernel has no Landlock.
    async fn connects(port: u16, to: u16) -> Option<bool> {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{to}")]);
        command.stderr(std::process::Stdio::null());
        let reach = Reach { port, is_strict: true };
        let mut child = reach.spawn(command).await.ok()?;
        Some(child.wait().await.unwrap().success())
    }

    #[tokio::test]
    async fn a_process_reaches_its_port_and_no_other() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Some(own) = connects(port, port).await else {
            eprintln!("skipped: this kernel has no Landlock for networks");
            return;
        };
        assert!(own);
        assert_eq!(connects(port.wrapping_add(1), port).await, Some(false));
        // This process may still.
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
}
