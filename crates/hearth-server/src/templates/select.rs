//! Which template a pool is served from.

use crate::store::{ProjectRow, TemplateRow};

/// The template that forks of a pool come from: the target recipe's, or, while that is not built, the newest other one. `all`:
/// of any projects.
pub fn serving<'a>(all: &'a [TemplateRow], project: &ProjectRow, wanted: &str) -> Option<&'a TemplateRow> {
    all.iter()
        .filter(|template| template.project == project.id)
        .max_by_key(|template| (template.recipe == wanted, template.created_at))
}
