//! What VMs were refused: places, as the packet filter counts them, and names. Bounded: a VM that tries everything costs no more.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use hearth_api::egress::{RefusedAttempt, RefusedProtocol};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::filter::{MOST_REFUSED, REFUSED_FOR};

/// Names that a VM was refused.
#[derive(Debug, Default)]
pub(super) struct RefusedNames {
    names: BTreeMap<String, RefusedAttempt>,
    more: bool,
}

impl RefusedNames {
    /// One more query.
    pub(super) fn note(&mut self, name: &str, now: Timestamp) {
        if let Some(attempt) = self.names.get_mut(name) {
            attempt.count += 1;
            attempt.last_at = now;
            return;
        }
        if self.names.len() >= MOST_REFUSED {
            self.more = true;
            return;
        }
        let attempt = RefusedAttempt {
            target: name.to_owned(),
            protocol: RefusedProtocol::Dns,
            count: 1,
            first_at: now,
            last_at: now,
        };
        self.names.insert(name.to_owned(), attempt);
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = RefusedAttempt> + '_ {
        self.names.values().cloned()
    }

    /// Whether there were more than are kept.
    pub(super) fn more(&self) -> bool {
        self.more
    }
}

/// A place, as the packet filter names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
struct Place(String, String, u16);

/// What a set of the packet filter says of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    place: Place,
    /// Seconds until it is forgotten.
    expires: u64,
    packets: u64,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    elem: Vec<Wrapped>,
}

#[derive(Deserialize)]
struct Wrapped {
    elem: Raw,
}

#[derive(Deserialize)]
struct Raw {
    val: Concat,
    expires: u64,
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Concat {
    concat: serde_json::Value,
}

#[derive(Deserialize)]
struct Counter {
    packets: u64,
}

/// What `nft --json list set` prints.
pub(super) fn elements(json: &[u8]) -> io::Result<Vec<Element>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let raw = listing.nftables.into_iter().filter_map(|part| part.set);
    let raw = raw.flat_map(|set| set.elem).map(|wrapped| wrapped.elem);
    // Protocols without a name are printed as numbers: there is nothing to say of them.
    Ok(raw
        .filter_map(|raw| {
            Some(Element {
                place: serde_json::from_value(raw.val.concat).ok()?,
                expires: raw.expires,
                packets: raw.counter.map_or(0, |counter| counter.packets),
            })
        })
        .collect())
}

/// The attempts that two sets tell of: when the first one to each place was, and when the last one and how many.
pub(super) fn attempts(first: &[Element], last: Vec<Element>, now: Timestamp) -> Vec<RefusedAttempt> {
    let at = |element: &Element| {
        let ago = REFUSED_FOR.saturating_sub(Duration::from_secs(element.expires));
        now - SignedDuration::try_from(ago).unwrap_or_default()
    };
    let first: HashMap<&Place, Timestamp> = first.iter().map(|element| (&element.place, at(element))).collect();
    let attempt = |element: Element| {
        let Place(address, protocol, port) = &element.place;
        let last_at = at(&element);
        Some(RefusedAttempt {
            target: format!("{address}:{port}"),
            protocol: match protocol.as_str() {
                "tcp" => RefusedProtocol::Tcp,
                "udp" => RefusedProtocol::Udp,
                _ => return None,
            },
            count: element.packets,
            first_at: first.get(&element.place).copied().unwrap_or(last_at).min(last_at),
            last_at,
        })
    };
    last.into_iter().filter_map(attempt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 prints it.
    const LISTED: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"set": {"family": "inet", "name": "refused", "table": "t", "type": ["ipv4_addr", "inet_proto", "inet_service"], "handle": 3,
        "size": 256, "flags": ["timeout"], "timeout": 604800, "elem": [
        {"elem": {"val": {"concat": ["8.8.8.8", "tcp", 53]}, "expires": 604790, "counter": {"packets": 3, "bytes": 180}}},
        {"elem": {"val": {"concat": ["1.1.1.1", 132, 443]}, "expires": 604799, "counter": {"packets": 1, "bytes": 60}}}],
        "stmt": [{"counter": null}]}}]}"#;

    #[test]
    fn listed_sets_become_attempts_and_an_empty_set_none() {
        let last = elements(LISTED.as_bytes()).unwrap();
        let first = [Element {
            expires: 604_700,
            ..last[0].clone()
        }];
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let attempts = attempts(&first, last, now);
        assert_eq!(
            attempts,
            [RefusedAttempt {
                target: "8.8.8.8:53".to_owned(),
                protocol: RefusedProtocol::Tcp,
                count: 3,
                first_at: "2026-01-01T00:00:20Z".parse().unwrap(),
                last_at: "2026-01-01T00:01:50Z".parse().unwrap(),
            }]
        );
        let none = r#"{"nftables": [{"metainfo": {}}, {"set": {"family": "inet", "name": "first_1"}}]}"#;
        assert_eq!(elements(none.as_bytes()).unwrap(), []);
    }

    #[test]
    fn names_are_counted_and_bounded() {
        let mut names = RefusedNames::default();
        let now = Timestamp::UNIX_EPOCH;
        for number in 0..MOST_REFUSED {
            names.note(&format!("n{number}.example"), now);
        }
        names.note("n0.example", now + SignedDuration::from_secs(5));
        assert!(!names.more());
        names.note("one.more.example", now);
        assert!(names.more());
        assert_eq!(names.attempts().count(), MOST_REFUSED);
        let twice = names.attempts().find(|attempt| attempt.target == "n0.example").unwrap();
        assert_eq!((twice.count, twice.last_at), (2, now + SignedDuration::from_secs(5)));
    }
}
