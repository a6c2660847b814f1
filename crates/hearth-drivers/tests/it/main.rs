//! One binary: the contract suite, run for every driver, and what only the driver `qemu` promises.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking, in its helpers too")]

mod contract;
mod contract_forks;
mod contract_save;
mod fake;
mod host;
mod incus;
mod incus_cluster;
mod incus_daemon;
mod qemu;
mod qemu_access;
mod qemu_crash;
mod qemu_egress;
mod qemu_forks;
mod qemu_network;
mod qemu_save;
mod support;

/// The contract suite for one kind of driver. `$rig` is an expression that makes a fresh [`contract::Rig`]; the attributes after
/// it are given to every test of the suite.
macro_rules! contract_suite {
    // `$attributes` is one token tree, so that every test can repeat it.
    (@each $rig:tt $attributes:tt $($name:ident,)*) => {
        $( crate::contract_suite!(@one $rig $attributes $name); )*
    };
    (@one $rig:tt [$(#[$attribute:meta])*] $name:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        $(#[$attribute])*
        async fn $name() {
            let rig = crate::contract_suite!(@make $rig);
            crate::contract::$name(&rig).await;
            crate::contract::Rig::finish(&rig).await;
        }
    };
    (@make ($rig:expr)) => { $rig };
    ($rig:expr $(, #[$attribute:meta])*) => {
        crate::contract_suite!(@each ($rig) [$(#[$attribute])*]
            a_vm_lives_is_found_again_and_leaves_nothing,
            a_killed_vm_is_noticed_and_can_be_made_anew,
            what_does_not_exist_is_said_so,
            the_impossible_is_permanent,
            one_id_is_one_vm_however_often_it_is_asked_for,
            destroying_while_creating_ends_with_nothing,
            a_caller_who_gives_up_leaves_no_pieces,
            a_paused_vm_stands_still_and_goes_on,
            forks_go_on_from_the_checkpoint_and_are_apart,
            a_fork_can_be_frozen_again_and_what_lies_below_stays,
            what_cannot_be_frozen_or_forked_is_said_so,
            a_damaged_checkpoint_is_never_used,
            a_vm_paused_to_the_disk_costs_no_memory_and_continues,
            a_vm_that_ended_cannot_be_paused_to_the_disk,
            a_vm_in_use_is_forked_and_continues,
            a_vm_is_held_to_a_policy_until_another_one_and_a_fork_to_none,
        );
    };
}
pub(crate) use contract_suite;
