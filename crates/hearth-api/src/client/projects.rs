//! Projects.

use reqwest::Method;

use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::page::{Items, Page};
use crate::project::{CreateProject, PatchProject, Project, ProjectDeleted, ProjectView, RepoBranches};

/// Most items a page may have.
const PAGE_LIMIT: &str = "100";

impl Client {
    /// One page of the projects.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_projects(&self, cursor: Option<&str>) -> Result<Page<Project>, ClientError> {
        let mut call = self.get(&["projects"]).query("limit", PAGE_LIMIT);
        if let Some(cursor) = cursor {
            call = call.query("cursor", cursor);
        }
        call.read().await
    }

    /// Every project, page after page.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_all_projects(&self) -> Result<Vec<Project>, ClientError> {
        let mut page = self.list_projects(None).await?;
        let mut all = std::mem::take(&mut page.items);
        while let Some(cursor) = page.next_cursor.take().filter(|_| page.has_more) {
            page = self.list_projects(Some(&cursor)).await?;
            all.append(&mut page.items);
        }
        Ok(all)
    }

    /// One project.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_project(&self, id: &ProjectId) -> Result<Project, ClientError> {
        self.get(&["projects", id.as_str()]).read().await
    }

    /// Everything that can be set of a project.
    ///
    /// # Errors
    /// As every call.
    pub async fn view_project(&self, id: &ProjectId) -> Result<ProjectView, ClientError> {
        self.get(&["projects", id.as_str(), "view"]).read().await
    }

    /// Makes a project.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_project(&self, body: &CreateProject) -> Result<Project, ClientError> {
        self.post(&["projects"]).json(body)?.read().await
    }

    /// Changes a project.
    ///
    /// # Errors
    /// As every call.
    pub async fn patch_project(&self, id: &ProjectId, body: &PatchProject) -> Result<Project, ClientError> {
        self.call(Method::PATCH, &["projects", id.as_str()])
            .json(body)?
            .read()
            .await
    }

    /// The branches of a project's repositories, as far as those answer.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_branches(&self, id: &ProjectId) -> Result<Items<RepoBranches>, ClientError> {
        self.get(&["projects", id.as_str(), "branches"]).read().await
    }

    /// Removes a project with its pool.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_project(&self, id: &ProjectId) -> Result<ProjectDeleted, ClientError> {
        self.call(Method::DELETE, &["projects", id.as_str()]).read().await
    }
}
