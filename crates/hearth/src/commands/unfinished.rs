//! Work in a VM that is still being made gets a warning, because what is changed in it may become part of the template.

use crate::output;

/// Says so.
pub(super) fn note() {
    output::note(
        "note: this VM is unfinished: its set-up still runs, and what is changed in it may become part of the template",
    );
}
