//! What a VM counts with against the host's memory. Pure.

/// Memory that a VM in use counts with, MiB: what it uses now, and a share, in percent, of what it may still take up to its size. With
/// 100 it always counts with its whole size; with 0 nothing is kept for it to grow. What it takes beyond its size (the emulator's own
/// memory) counts whole.
#[must_use]
pub fn counts_in_use(size_mib: u64, used_mib: u64, reserve_percent: u8) -> u64 {
    let may_take = size_mib.saturating_sub(used_mib);
    let share = may_take
        .saturating_mul(u64::from(reserve_percent.min(100)))
        .div_ceil(100);
    used_mib.saturating_add(share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It never counts with less than it uses, nor with less the more it uses, and with its size at most while it fits.
        #[test]
        fn counts_between_what_it_uses_and_its_size(
            size in 1_u64..100_000,
            used in 0_u64..120_000,
            more in 0_u64..1000,
            percent in 0_u8..=100,
        ) {
            let counts = counts_in_use(size, used, percent);
            prop_assert!(counts >= used && counts <= size.max(used));
            prop_assert!(counts_in_use(size, used + more, percent) >= counts);
            prop_assert_eq!(counts_in_use(size, used, 100), size.max(used));
            prop_assert_eq!(counts_in_use(size, used, 0), used);
        }
    }

    #[test]
    fn half_of_the_rest_is_kept() {
        assert_eq!(counts_in_use(2048, 248, 50), 1148);
    }
}
