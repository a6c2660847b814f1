//! A Dockerfile on Debian or Ubuntu: each instruction is a step of the set-up. Where the whole repository is copied to is the checkout
//! itself, so what is installed there is installed in it.

use crate::Fault;
use crate::base::{Base, base};
use crate::dockerfile_steps::Steps;
use crate::draft::Draft;
use crate::files::{Reader, folder_of};
use crate::instructions::{Instruction, instructions};

/// What is said about a Dockerfile elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The folder that files are copied from.
    pub(crate) context: String,
    /// Values of build arguments.
    pub(crate) arguments: Vec<(String, String)>,
    /// The stage that is meant; the last one when absent.
    pub(crate) target: Option<String>,
}

pub(crate) fn find(reader: &mut Reader<'_>) -> Result<Option<String>, Fault> {
    reader.first(&["Dockerfile", "Containerfile"])
}

pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<bool, Fault> {
    let options = Options {
        context: folder_of(file).to_owned(),
        ..Options::default()
    };
    steps(reader, draft, file, &options)
}

/// Longest value of a build argument, bytes.
const MAX_ARGUMENT: usize = 4096;
/// So many build arguments a stage may have: each command sets them all.
const MAX_ARGUMENTS: usize = 50;
/// A text may become so long by what is put into it, bytes.
const MAX_TEXT: usize = 64 * 1024;

/// Build arguments, by name.
pub(crate) type Arguments = Vec<(String, String)>;

/// One stage of a file.
pub(crate) struct Stage {
    from: Instruction,
    image: String,
    pub(crate) name: Option<String>,
    instructions: Vec<Instruction>,
}

/// Takes the instructions; `false` when the image is none that a VM stands in for.
pub(crate) fn steps(reader: &mut Reader<'_>, draft: &mut Draft, file: &str, options: &Options) -> Result<bool, Fault> {
    let Some(text) = reader.text(file)? else {
        return Ok(false);
    };
    let (arguments, stages) = stages(file, instructions(file, &text)?, options)?;
    draft.file(file);
    let chosen = match &options.target {
        Some(target) => {
            let by_name = |stage: &Stage| {
                stage
                    .name
                    .as_deref()
                    .is_some_and(|name| name.eq_ignore_ascii_case(target))
            };
            let at = stages
                .iter()
                .position(by_name)
                .or_else(|| target.parse().ok().filter(|at| *at < stages.len()));
            let at = at.ok_or_else(|| Fault::new(file, "", format!("has no stage `{target}`")))?;
            vec![at]
        }
        None => (0..stages.len()).rev().collect(),
    };
    for at in chosen {
        let chain = chain(&stages, at);
        let first = &stages[chain[0]];
        match base(&first.image) {
            Base::Other(why) => draft.left_out(file, &first.from.place(), why),
            Base::Debian(brings) => {
                let place = first.from.place();
                match brings {
                    None => draft.taken(
                        file,
                        &place,
                        format!("a VM of Hearth's image stands in for {}", first.image),
                    ),
                    Some((tool, version)) => draft.need(file, &place, tool, version.as_deref()),
                }
                let all: Vec<&Instruction> = chain.iter().flat_map(|at| &stages[*at].instructions).collect();
                Steps::new(draft, file, options, arguments).all(&all, &stages)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Build arguments before the first stage, and the stages.
fn stages(file: &str, all: Vec<Instruction>, options: &Options) -> Result<(Arguments, Vec<Stage>), Fault> {
    let mut arguments = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in all {
        match (instruction.name, stages.last_mut()) {
            ("FROM", _) => {
                let words: Vec<&str> = instruction.text.split_whitespace().collect();
                let name = match words[..] {
                    [_, word, name] if word.eq_ignore_ascii_case("as") => Some(name.to_owned()),
                    [_] => None,
                    _ => {
                        return Err(Fault::new(
                            file,
                            instruction.place(),
                            "FROM says more than an image and `AS name`",
                        ));
                    }
                };
                let image = put_in(words[0], &arguments, false);
                let image = image.map_err(|what| Fault::new(file, instruction.place(), what))?;
                stages.push(Stage {
                    from: instruction,
                    image,
                    name,
                    instructions: Vec::new(),
                });
            }
            ("ARG", None) => argument(&instruction.text, options, &[], &mut arguments)
                .map_err(|what| Fault::new(file, instruction.place(), what))?,
            (_, None) => {
                return Err(Fault::new(
                    file,
                    instruction.place(),
                    "the first instruction must be FROM",
                ));
            }
            (_, Some(stage)) => stage.instructions.push(instruction),
        }
    }
    if stages.is_empty() {
        return Err(Fault::new(file, "", "has no FROM"));
    }
    Ok((arguments, stages))
}

/// A stage after those that it is made from.
fn chain(stages: &[Stage], at: usize) -> Vec<usize> {
    let mut chain = vec![at];
    let mut at = at;
    // Only earlier ones can be meant, so this ends.
    while let Some(before) = stages[..at].iter().position(|stage| {
        stage
            .name
            .as_deref()
            .is_some_and(|name| name.eq_ignore_ascii_case(&stages[at].image))
    }) {
        chain.insert(0, before);
        at = before;
    }
    chain
}

/// One build argument: what was given for it, else its own value, else what was said before the first stage. The error is a sentence.
pub(crate) fn argument(
    text: &str,
    options: &Options,
    before: &[(String, String)],
    arguments: &mut Arguments,
) -> Result<(), String> {
    for word in shlex::split(text).unwrap_or_default() {
        let (name, own) = word
            .split_once('=')
            .map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let of = |all: &[(String, String)]| {
            let found = all.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.clone())
        };
        let platform = match name {
            "TARGETARCH" | "BUILDARCH" => Some("amd64"),
            "TARGETOS" | "BUILDOS" => Some("linux"),
            "TARGETPLATFORM" | "BUILDPLATFORM" => Some("linux/amd64"),
            _ => None,
        };
        let value = of(&options.arguments)
            .or_else(|| own.map(str::to_owned))
            .or_else(|| of(before))
            .or_else(|| platform.map(str::to_owned));
        if let Some(value) = value.filter(|_| crate::shell::is_name(name)) {
            arguments.retain(|(known, _)| known != name);
            if value.len() > MAX_ARGUMENT || arguments.len() >= MAX_ARGUMENTS {
                return Err(format!(
                    "at most {MAX_ARGUMENTS} build arguments of {MAX_ARGUMENT} bytes are read"
                ));
            }
            arguments.push((name.to_owned(), value));
        }
    }
    Ok(())
}

/// A text with the values of these: `$NAME`, `${NAME}`, `${NAME:-default}`. `keeps`: other names stay as they are, for a shell to put
/// in. The error is a sentence.
pub(crate) fn put_in(text: &str, values: &[(String, String)], keeps: bool) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (inner, past) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((inner, past)) => (inner, past),
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
        match values.iter().find(|(known, _)| known == name) {
            Some((_, value)) => out.push_str(value),
            None if keeps => out.push_str(&rest[at..rest.len() - past.len()]),
            None => out.push_str(default),
        }
        if out.len() > MAX_TEXT {
            return Err(format!("becomes longer than {} KiB", MAX_TEXT / 1024));
        }
        rest = past;
    }
    out.push_str(rest);
    Ok(out)
}
