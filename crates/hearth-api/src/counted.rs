//! Numbers with their nouns, as sentences need them.

use std::fmt::Display;

/// `1 VM`, `2 VMs`. The noun is one whose plural ends in `s`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// `once`, `3 times`.
pub fn times<N: Display + PartialEq + From<u8>>(number: N) -> String {
    if number == N::from(1) {
        "once".to_owned()
    } else {
        format!("{number} times")
    }
}

/// `once`, `3 times in a row`.
pub fn times_in_a_row<N: Display + PartialEq + From<u8>>(number: N) -> String {
    if number == N::from(1) {
        "once".to_owned()
    } else {
        format!("{number} times in a row")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            (count(1_u64, "VM"), count(0_usize, "VM")),
            ("1 VM".into(), "0 VMs".into())
        );
        assert_eq!((times(1_u32), times(2_u32)), ("once".into(), "2 times".into()));
        assert_eq!(times_in_a_row(1_u32), "once");
        assert_eq!(times_in_a_row(3_u32), "3 times in a row");
    }
}
