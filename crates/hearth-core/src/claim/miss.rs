//! Why a claim got no ready VM of its pool: one cause, from what the claim saw on its way.

use hearth_api::claim::Miss;
use hearth_api::explain::MissCause;

use super::{ClaimOrder, ClaimScope, ClaimView, Next, QueueView, Ready, Take, has_template};

/// What a claim saw from which its cause follows.
#[derive(Debug, Clone, Copy, Default)]
pub struct MissFacts {
    /// How many VMs were ready for it when it first looked.
    pub ready: Option<Ready>,
    /// There was a template to fork from; `None` where that did not matter.
    pub template: Option<bool>,
    /// The pool when it first looked.
    pool: Option<PoolThen>,
    /// A ready VM was tried and was not fit.
    unfit: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct PoolThen {
    enabled: bool,
    /// Its set-up fails until a person repairs something.
    needs_repair: bool,
}

impl MissFacts {
    /// How many were ready when the claim first looked.
    pub fn note_ready(&mut self, ready: Ready) {
        self.ready.get_or_insert(ready);
    }

    /// A ready VM was tried and was not fit.
    pub fn note_unfit(&mut self) {
        self.unfit = true;
    }

    /// What the claim saw when it decided on this step.
    pub fn note_view(&mut self, view: &ClaimView, order: &ClaimOrder, step: &Next) {
        self.pool.get_or_insert(PoolThen {
            enabled: view.pool.enabled,
            needs_repair: view.pool.needs_repair,
        });
        let takes = matches!(step, Next::Take(Take::Pool { .. }));
        if order.scope() != ClaimScope::Own && !takes {
            self.note_ready(match view.queue {
                // Claims that wait already have the first call on what is ready.
                QueueView::Outside { waiting: 1.. } => Ready::default(),
                _ => view.pool.ready,
            });
        }
        let waits = matches!(step, Next::Make { .. } | Next::Join | Next::Wait { .. });
        if waits && view.reserved.is_empty() && order.miss != Miss::Require {
            self.template = Some(has_template(view, order));
        }
    }

    /// Why no ready VM was handed over. The first of these that holds is the cause.
    #[must_use]
    pub fn cause(&self, order: &ClaimOrder) -> MissCause {
        let (ready, pool) = (self.ready.unwrap_or_default(), self.pool.unwrap_or_default());
        if order.miss == Miss::Bypass {
            MissCause::Bypass
        } else if !pool.enabled {
            MissCause::PoolDisabled
        } else if self.unfit {
            MissCause::Unfit
        } else if order.strict && ready.any > 0 && ready.target == 0 {
            MissCause::OlderRecipe
        } else if pool.needs_repair {
            MissCause::SetUpFails
        } else if self.template == Some(false) {
            MissCause::NoTemplate
        } else {
            MissCause::Drained
        }
    }
}
