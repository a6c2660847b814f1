//! Bounded labels: the first many projects that are counted have their ids, all others are `other`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::ids::ProjectId;

/// Projects with a label of their own. Some metrics have thirty series per project.
const MOST: usize = 500;
/// All other projects.
pub(super) const OTHER: &str = "other";

/// Which projects have a label of their own. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Projects(Arc<Mutex<HashSet<ProjectId>>>);

impl Projects {
    /// The label of a project.
    pub(super) fn label<'a>(&self, project: &'a ProjectId) -> &'a str {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(project) {
            return project.as_str();
        }
        if known.len() >= MOST {
            return OTHER;
        }
        known.insert(project.clone());
        project.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_beyond_the_bound_are_counted_together_and_the_first_keep_their_labels() {
        let projects = Projects::default();
        let ids: Vec<ProjectId> = (0..MOST + 10).map(|_| ProjectId::generate()).collect();
        let labels: Vec<&str> = ids.iter().map(|id| projects.label(id)).collect();
        assert!(labels[..MOST].iter().zip(&ids).all(|(label, id)| *label == id.as_str()));
        assert!(labels[MOST..].iter().all(|label| *label == OTHER));
        assert_eq!(projects.label(&ids[0]), ids[0].as_str());
    }
}
