//! TCP connections to the outside that were open when the VM was frozen. Their other end belongs to another VM's network or
//! is long gone; a program that waits for data on one would wait for ever. They are shut down through a copy of their
//! owner's handle, which works with every kernel since 5.6, in every container of the VM, and ends them as a reset would.
//!
//! Listening sockets, and connections within the VM, are left alone.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{Part, at};

/// Tables of a network namespace, below a process's folder.
const TABLES: [&str; 2] = ["net/tcp", "net/tcp6"];
/// `include/net/tcp_states.h`: a socket that listens, one that is closed, one that only remembers.
const LISTEN: u8 = 0x0a;
const CLOSED: u8 = 0x07;
const TIME_WAIT: u8 = 0x06;
/// The uplink's own network. Every other private address is inside of the VM (its bridges and containers), because the
/// packet rules around the VM let none of them through.
const UPLINK: [u8; 3] = [10, 0, 2];

/// Shuts down every connection to the outside; gives their number.
pub(super) fn close_outside() -> Part<u32> {
    let proc = Path::new("/proc");
    let processes: Vec<i32> = fs::read_dir(proc)
        .map_err(at(proc))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // One look per network namespace: the tables are the same for all of its processes.
    let mut by_namespace: HashMap<std::path::PathBuf, HashSet<String>> = HashMap::new();
    let mut of_process = Vec::new();
    for pid in processes {
        let folder = proc.join(pid.to_string());
        // A process that has ended has no connection left.
        let Ok(namespace) = fs::read_link(folder.join("ns/net")) else {
            continue;
        };
        if !by_namespace.contains_key(&namespace) {
            let mut open = HashSet::new();
            for table in TABLES {
                // Without IPv6 there is no such table.
                let text = fs::read_to_string(folder.join(table)).unwrap_or_default();
                open.extend(
                    text.lines()
                        .filter_map(outside)
                        .map(|inode| format!("socket:[{inode}]")),
                );
            }
            by_namespace.insert(namespace.clone(), open);
        }
        of_process.push((pid, namespace));
    }
    let mut closed = HashSet::new();
    for (pid, namespace) in of_process {
        let Some(open) = by_namespace.get(&namespace).filter(|open| !open.is_empty()) else {
            continue;
        };
        for (number, name) in handles(pid).into_iter().filter(|(_, name)| open.contains(name)) {
            if !closed.contains(&name)
                && shut_down(pid, number).map_err(|error| format!("a connection of process {pid}: {error}"))?
            {
                closed.insert(name);
            }
        }
    }
    Ok(u32::try_from(closed.len()).unwrap_or(u32::MAX))
}

/// The open files of a process: number, and what they are.
fn handles(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.to_str()?.to_owned()))
    });
    named.collect()
}

/// False when it is gone already.
fn shut_down(pid: i32, number: i32) -> rustix::io::Result<bool> {
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(false);
    };
    let get = || {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let socket = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
        rustix::net::shutdown(socket, Shutdown::Both)
    };
    match get() {
        Ok(()) => Ok(true),
        Err(Errno::SRCH | Errno::BADF | Errno::NOTCONN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The inode of a connection to outside the VM, from a line of a table; `None` for every other line.
fn outside(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace().skip(2);
    let remote = fields.next()?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    // Skips queues, timer, retransmits, user and timeout.
    let inode = fields.nth(5)?;
    if matches!(state, LISTEN | CLOSED | TIME_WAIT) || inode == "0" {
        return None;
    }
    is_outside(parse_address(remote.split_once(':')?.0)?).then_some(inode)
}

/// Hexadecimal digits in words of four bytes, each as the processor keeps it.
fn parse_address(digits: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..digits.len()).step_by(8) {
        let word = u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) if address.octets().starts_with(&UPLINK) => true,
        IpAddr::V4(address) => {
            !(address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_connections_to_the_outside_are_meant() {
        let line = |remote: &str, state: &str| {
            format!(
                "   1: 0F02000A:8F12 {remote} {state} 00000000:00000000 02:000A 00000000     0        0 4711 2 0 20"
            )
        };
        for (remote, state, meant) in [
            ("08080808:01BB", "01", true),
            ("0202000A:0035", "01", true),
            ("08080808:01BB", "08", true),
            ("0100007F:1F90", "01", false),
            ("030011AC:1F90", "01", false),
            ("08080808:01BB", "06", false),
            ("00000000:0000", "0A", false),
            ("0000000000000000FFFF000008080808:01BB", "01", true),
            ("0000000000000000FFFF00000100007F:01BB", "01", false),
            ("00000000000000000000000001000000:01BB", "01", false),
        ] {
            assert_eq!(outside(&line(remote, state)).is_some(), meant, "{remote} {state}");
        }
        assert_eq!(outside(&line("08080808:01BB", "01")), Some("4711"));
        assert_eq!(
            outside("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"),
            None
        );
    }

    #[test]
    fn a_connection_is_shut_down_through_its_owners_handle() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let (number, name) = (near.as_raw_fd(), handles(own));
        assert!(
            name.iter()
                .any(|(found, name)| *found == number && name.starts_with("socket:["))
        );
        assert!(shut_down(own, number).unwrap());
        assert_eq!(near.read(&mut [0; 8]).unwrap(), 0, "the reader is told");
        assert!(!shut_down(own, 1_000_000).unwrap(), "what is gone is no error");
    }
}
