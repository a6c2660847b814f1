//! Whether the guest is a container: then the kernel, its clock and its random pool are the host's, which nobody froze, and which a
//! container may not set.

use std::fs;

/// What the map of user ids says outside of any user namespace.
const EVERY_ID: [u64; 3] = [0, 0, 4_294_967_295];

/// Whether the kernel is not ours: we are in a user namespace. What cannot be read counts as a VM.
pub(crate) fn shares_kernel() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_whole(&map))
}

fn is_whole(map: &str) -> bool {
    let numbers: Vec<u64> = map.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers == EVERY_ID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_map_of_all_ids_is_outside_of_a_user_namespace() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0    1000000 1000000000\n"));
        assert!(!is_whole("0 0 65536\n65536 100000 65536\n"));
        assert!(!is_whole(""));
    }
}
