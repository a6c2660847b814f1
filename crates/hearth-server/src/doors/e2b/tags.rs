//! Tags of templates: names of builds. A template here has one set-up, that of its newest build: what an earlier build made is not kept,
//! and its tags say so.

use hearth_api::ids::ProjectId;
use jiff::Timestamp;

use super::fault::Refusal;
use crate::http::AppState;
use crate::store::E2bTag;

/// The tag of a name without one.
pub const DEFAULT: &str = "default";
/// Tags of one call, and characters of one.
const MOST: usize = 32;
const MOST_CHARACTERS: usize = 128;

/// 400 unless these are texts that can stand behind a name.
pub fn check(tags: &[String]) -> Result<(), Refusal> {
    let is_tag = |tag: &String| {
        let fits = |sign: u8| sign.is_ascii_alphanumeric() || b"-_.".contains(&sign);
        (1..=MOST_CHARACTERS).contains(&tag.len()) && tag.bytes().all(fits)
    };
    if tags.len() > MOST || !tags.iter().all(is_tag) {
        let why = format!(
            "`tags` takes at most {MOST}, each of 1 to {MOST_CHARACTERS} letters, digits, hyphens, underscores and dots"
        );
        return Err(Refusal::wrong(why));
    }
    Ok(())
}

/// Gives them to a build that was begun then.
pub async fn give(
    state: &AppState,
    project: &ProjectId,
    build: &str,
    built_at: Timestamp,
    tags: &[String],
) -> Result<(), Refusal> {
    let tagged_at = Timestamp::now();
    let tags: Vec<E2bTag> = tags
        .iter()
        .map(|tag| E2bTag {
            tag: tag.clone(),
            build: build.to_owned(),
            built_at,
            tagged_at,
        })
        .collect();
    Ok(state.store.put_e2b_tags(project, &tags).await?)
}

/// The build that a tag, or its own id, names. `text` is what the client wrote.
fn build_of<'a>(tags: &'a [E2bTag], wanted: &str, text: &str) -> Result<&'a E2bTag, Refusal> {
    let found = tags.iter().find(|tag| tag.tag == wanted || tag.build == wanted);
    found.ok_or_else(|| {
        let known: Vec<String> = tags.iter().map(|tag| format!("`{}`", tag.tag)).collect();
        let known = match known.as_slice() {
            [] => "it has none: `Template.build` gives them".to_owned(),
            known => format!("its tags are {}", known.join(", ")),
        };
        Refusal::not_found(format!(
            "template `{text}` was not found: there is no tag `{wanted}`; {known}"
        ))
    })
}

/// 404 when a template is not what this tag was given to any more.
pub async fn must_be_newest(
    state: &AppState,
    project: &ProjectId,
    wanted: Option<&str>,
    text: &str,
) -> Result<(), Refusal> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let tags = state.store.e2b_tags(project).await?;
    if wanted == DEFAULT && !tags.iter().any(|tag| tag.tag == DEFAULT) {
        return Ok(());
    }
    newest(&tags, wanted, text).map(drop)
}

/// The build that a tag names; 404 when a later one has replaced it.
pub fn newest<'a>(tags: &'a [E2bTag], wanted: &str, text: &str) -> Result<&'a E2bTag, Refusal> {
    let build = build_of(tags, wanted, text)?;
    if tags.iter().any(|tag| tag.built_at > build.built_at) {
        let why = format!(
            "template `{text}` was not found: a later build has replaced that of the tag `{wanted}`; leave the tag out, or build it again"
        );
        return Err(Refusal::not_found(why));
    }
    Ok(build)
}
