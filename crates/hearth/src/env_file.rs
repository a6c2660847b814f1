//! Files of variables, as `docker run --env-file` and dotenv read them. What the two have in common is read as both do. Where they
//! differ: quotes around a value are taken away, a quoted value may go over several lines, ` #` after a value begins a remark and
//! `export` may stand before a name, as in dotenv; a `$` stays a `$`, unquoted blanks inside a value and backslashes stay, and a NAME
//! alone takes its value from the caller's environment, as in docker.

use hearth_api::values::{VariableName, VariableValue};
use hearth_api::variables::Variable;

use crate::failure::Failure;
use crate::input;

/// Characters that no text uses by agreement: one that the file does not hold stands for `$` where dotenv would replace it.
const PRIVATE_CHARACTERS: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{f8ff}';

/// All variables of a file, or everything that is wrong with it. No message quotes a value.
pub(crate) fn parse(name: &str, text: &str) -> Result<Vec<Variable>, Failure> {
    let text = input::without_mark(text);
    let lines: Vec<&str> = text.lines().collect();
    let (mut variables, mut faults) = (Vec::<Variable>::new(), Vec::new());
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        match entry(&lines, &mut at) {
            Ok(None) => {}
            Ok(Some(variable)) => {
                // The last one counts, as in both.
                variables.retain(|other| other.name != variable.name);
                variables.push(variable);
            }
            Err(fault) => faults.push(format!("line {}: {fault}", first + 1)),
        }
    }
    match faults.as_slice() {
        [] if variables.is_empty() => Err(Failure::usage(format!("{name} holds no variables"))),
        [] => Ok(variables),
        [one] => Err(Failure::usage(format!("{name}: {one}"))),
        many => {
            let failure = Failure::usage(format!("{name}: {} lines cannot be read", many.len()));
            Err(many.iter().fold(failure, |failure, fault| failure.detail(fault)))
        }
    }
}

/// What begins in this line; `at` is moved behind it.
fn entry(lines: &[&str], at: &mut usize) -> Result<Option<Variable>, String> {
    let line = lines[*at].trim();
    *at += 1;
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line
        .strip_prefix("export")
        .filter(|rest| rest.starts_with([' ', '\t']))
        .map_or(line, str::trim_start);
    let (name, value) = match line.split_once('=') {
        Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
        None => (line, None),
    };
    let parsed = VariableName::try_from(name)
        .map_err(|_| "begins with no NAME of letters, digits and `_` and a `=` after it".to_owned())?;
    let value = match value {
        None => std::env::var(name).map_err(|_| format!("{name} has no value here and none in your environment"))?,
        Some(value) if value.starts_with(['"', '\'']) => quoted(name, value, lines, at)?,
        Some(value) => unquoted(value).to_owned(),
    };
    Ok(Some(Variable {
        value: VariableValue::try_from(value).map_err(|fault| format!("the value of {name} {fault}"))?,
        name: parsed,
    }))
}

fn unquoted(value: &str) -> &str {
    if value.starts_with('#') {
        return "";
    }
    let remark = value.find(" #").or_else(|| value.find("\t#"));
    remark.map_or(value, |at| &value[..at]).trim_end()
}

/// A quoted value as dotenv reads it, which may continue in the next lines.
fn quoted(name: &str, value: &str, lines: &[&str], at: &mut usize) -> Result<String, String> {
    let mut text = value.to_owned();
    let mut next = *at;
    loop {
        if let Some(value) = dotenv_value(&text) {
            *at = next;
            return Ok(value);
        }
        let Some(line) = lines.get(next) else {
            return Err(format!(
                "the value of {name} begins with a quote that does not end well"
            ));
        };
        text.push('\n');
        text.push_str(line);
        next += 1;
    }
}

fn dotenv_value(text: &str) -> Option<String> {
    let dollar = PRIVATE_CHARACTERS
        .into_iter()
        .find(|one| !text.contains(*one))?
        .to_string();
    let line = format!("X={}\n", text.replace('$', &dollar));
    let mut entries = dotenvy::from_read_iter(line.as_bytes());
    let (_, value) = entries.next()?.ok()?;
    // Something after the closing quote would be a second entry.
    entries.next().is_none().then(|| value.replace(&dollar, "$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let variables = parse("f", text).unwrap();
        variables
            .into_iter()
            .map(|one| (one.name.into(), one.value.into()))
            .collect()
    }

    fn one(text: &str) -> String {
        read(text).remove(0).1
    }

    #[test]
    fn what_docker_and_dotenv_share_is_read_as_both_do() {
        let text = "\u{feff}# a remark\r\n\r\nA=1\r\nB=x=y==\r\nEMPTY=\r\nURL=https://u@h/p?a=b&c=d#f\r\n";
        let want = [
            ("A", "1"),
            ("B", "x=y=="),
            ("EMPTY", ""),
            ("URL", "https://u@h/p?a=b&c=d#f"),
        ];
        let want: Vec<_> = want
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(read(text), want);
        assert_eq!(read("A=1\nA=2"), [("A".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn where_they_differ_it_is_as_help_says() {
        for (text, value) in [
            ("A=\"x y\"", "x y"),
            ("A='x $y \\n'", "x $y \\n"),
            ("A=\"x\\ny\"", "x\ny"),
            ("A=\"two\nlines\" # remark", "two\nlines"),
            ("A=pa$$w0rd$HOME", "pa$$w0rd$HOME"),
            ("A=\"pa$HOME\"", "pa$HOME"),
            ("A=-Xmx1g -Xms1g", "-Xmx1g -Xms1g"),
            ("A=C:\\temp\\new", "C:\\temp\\new"),
            ("A=x # remark", "x"),
            ("A=x#y", "x#y"),
            ("export A=x", "x"),
            ("  A = x  ", "x"),
        ] {
            assert_eq!(one(text), value, "{text}");
        }
        assert_eq!(read("A='one\ntwo'\nB=3").len(), 2);
        assert_eq!(one("PATH"), std::env::var("PATH").unwrap());
    }

    #[test]
    fn everything_that_is_wrong_is_said_by_line_without_a_value() {
        let failure = parse("f", "OK=1\n1A=geheim\nB C=geheim\nNOT_SET_ANYWHERE\nD=\"geheim").unwrap_err();
        let said = failure.to_string();
        for part in [
            "4 lines",
            "line 2: ",
            "line 3: ",
            "line 4: NOT_SET_ANYWHERE",
            "line 5: the value of D",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("geheim"), "{said}");
        assert!(parse("f", "# nothing\n").is_err());
    }
}
