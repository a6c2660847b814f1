//! Options for the driver `incus`: of `hearth serve`, and of what is asked without a server.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hearth_drivers::incus::{IncusAddress, IncusKind, IncusSettings, IncusTls};

/// Where Incus is, and what of it is used.
#[derive(Debug, Clone, Args)]
pub(super) struct IncusArgs {
    /// Where Incus answers: `unix:/PATH` of its socket, or `https://HOST:8443`; several are members of one cluster, and the first that
    /// answers is asked [default: unix:/var/lib/incus/unix.socket]
    #[arg(hide = true, long = "incus", value_name = "ADDRESS")]
    incus: Vec<IncusAddress>,
    /// This client's certificate for Incus' port, PEM
    #[arg(hide = true, long, value_name = "FILE", requires = "incus_key")]
    incus_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(hide = true, long, value_name = "FILE", requires = "incus_cert")]
    incus_key: Option<PathBuf>,
    /// Incus' own certificate, PEM, which is trusted as it is: server.crt, or cluster.crt of a cluster [default: the authorities that this
    /// machine trusts]
    #[arg(hide = true, long, value_name = "FILE", requires = "incus_cert")]
    incus_server_cert: Option<PathBuf>,
    /// The project of Incus that everything is in; made where it is missing [default: one named after this installation]
    #[arg(hide = true, long, value_name = "NAME")]
    incus_project: Option<String>,
    /// The storage pool of Incus that disks are in [default: the only one, or the one called `default`]
    #[arg(hide = true, long, value_name = "NAME")]
    incus_pool: Option<String>,
    /// The network of Incus that VMs are on [default: none; then VMs reach nothing]
    #[arg(hide = true, long, value_name = "NAME")]
    incus_network: Option<String>,
    /// What VMs are, where a project's image does not begin with `vm:` or `container:` [default: container]
    #[arg(hide = true, long, value_enum, value_name = "TYPE")]
    incus_type: Option<IncusType>,
}

/// `--driver` of a command that is about real VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RealDriver {
    Qemu,
    Incus,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IncusType {
    Container,
    Vm,
}

impl IncusArgs {
    pub(super) fn settings(&self) -> IncusSettings {
        let usual = IncusSettings::default();
        let files = self.incus_cert.clone().zip(self.incus_key.clone());
        IncusSettings {
            addresses: match self.incus.is_empty() {
                true => usual.addresses,
                false => self.incus.clone(),
            },
            tls: files.map(|(certificate, key)| IncusTls {
                certificate,
                key,
                server_certificate: self.incus_server_cert.clone(),
            }),
            project: self.incus_project.clone(),
            pool: self.incus_pool.clone(),
            network: self.incus_network.clone(),
            kind: match self.incus_type {
                Some(IncusType::Vm) => IncusKind::VirtualMachine,
                Some(IncusType::Container) | None => IncusKind::Container,
            },
        }
    }
}
