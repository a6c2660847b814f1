//! Which TCP sockets take connections, and whose they are: from `/proc/net/tcp`, `/proc/net/tcp6` and the processes' open files.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use hearth_guest::ports::ListeningPort;

use crate::users;

/// State of a socket that takes connections.
const LISTEN: &str = "0A";
/// Longest text of a process's arguments.
const LONGEST_COMMAND: usize = 256;

/// A socket as the kernel's table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

/// Where somebody listens on this port.
pub(super) fn addresses_of(port: u16) -> Vec<SocketAddr> {
    let all = sockets().into_iter().map(|socket| socket.address);
    all.filter(|address| address.port() == port).collect()
}

/// Everything that listens, by port and address.
pub(super) fn with_processes() -> Vec<ListeningPort> {
    let sockets = sockets();
    let mut owners: HashMap<u64, u32> = sockets.iter().map(|socket| (socket.inode, 0)).collect();
    find_owners(Path::new("/proc"), &mut owners);
    let names = users::user_names();
    let mut found: Vec<ListeningPort> = sockets
        .into_iter()
        .map(|socket| {
            let pid = owners.get(&socket.inode).copied().filter(|pid| *pid > 0);
            ListeningPort {
                port: socket.address.port(),
                address: socket.address.ip().to_string(),
                process_id: pid,
                process: pid.and_then(short_name),
                command: pid.and_then(command_of),
                user: Some(
                    names
                        .get(&socket.uid)
                        .cloned()
                        .unwrap_or_else(|| socket.uid.to_string()),
                ),
            }
        })
        .collect();
    found.sort_by(|one, other| (one.port, &one.address).cmp(&(other.port, &other.address)));
    found.dedup();
    found
}

fn sockets() -> Vec<Socket> {
    // A kernel without IPv6 has no second table.
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .flat_map(|path| parse(&fs::read_to_string(path).unwrap_or_default()))
        .collect()
}

fn parse(table: &str) -> Vec<Socket> {
    let rows = table.lines().skip(1);
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        if *state != LISTEN {
            return None;
        }
        Some(Socket {
            address: parse_address(local)?,
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    })
    .collect()
}

/// `0100007F:0BB8`: words of four bytes in the machine's order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let bytes = hex::decode(address).ok()?;
    let word = |word: &[u8]| -> Option<[u8; 4]> {
        let word: [u8; 4] = word.try_into().ok()?;
        Some(u32::from_be_bytes(word).to_ne_bytes())
    };
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(word(&bytes)?).into(),
        16 => {
            let mut whole = [0; 16];
            for (to, from) in whole.chunks_exact_mut(4).zip(bytes.chunks_exact(4)) {
                to.copy_from_slice(&word(from)?);
            }
            Ipv6Addr::from(whole).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Gives each of these sockets the process that holds it.
fn find_owners(proc: &Path, owners: &mut HashMap<u64, u32>) {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut missing = owners.len();
    for pid in pids {
        if missing == 0 {
            return;
        }
        // A process that ends meanwhile holds nothing.
        for file in fs::read_dir(proc.join(pid.to_string()).join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(target) = fs::read_link(file.path()) else {
                continue;
            };
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            if let Some(owner) = inode.and_then(|inode| owners.get_mut(&inode))
                && *owner == 0
            {
                *owner = pid;
                missing -= 1;
            }
        }
    }
}

fn short_name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

fn command_of(pid: u32) -> Option<String> {
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let text = words.join(" ");
    (!text.is_empty()).then(|| text.chars().take(LONGEST_COMMAND).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_take_connections_are_read_with_their_addresses() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0BB8 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 100 0 0 10 0
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100 0 0 10 0
   3: rubbish
";
        let found = parse(table);
        let addresses: Vec<String> = found.iter().map(|socket| socket.address.to_string()).collect();
        assert_eq!(addresses, ["127.0.0.1:3000", "0.0.0.0:22"]);
        assert_eq!((found[0].uid, found[0].inode), (1000, 4711));
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        for (text, address) in [
            ("00000000000000000000000001000000:1F90", "[::1]:8080"),
            ("00000000000000000000000000000000:0050", "[::]:80"),
            ("0F02000A:0BB8", "10.0.2.15:3000"),
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), address);
        }
        for text in ["", "01:0BB8", "0100007F", "0100007F:x", "zz00007F:0BB8"] {
            assert!(parse_address(text).is_none(), "{text}");
        }
    }
}
