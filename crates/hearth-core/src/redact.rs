//! Redaction. What a guest, git or a person wrote may hold the values of a project's variables. A [`Redactor`] knows these, and
//! text passes it once, where it comes in: as [`Redacted`], the only text that the step log, an instance's failure and the live
//! log take. Code that joins or cuts such texts has a redacted text again, and nothing passes the redactor twice.

mod bounded;
mod stream;
mod values;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize as _, Deserializer, Serialize};

pub use bounded::Bounded;
pub use stream::RedactedStream;
use values::Values;

/// What stands in place of a value.
const IN_PLACE_OF_VALUE: &str = "***";

/// A text without values of variables, as far as a redactor can find them. It is made by a [`Redactor`], is written in the code, or
/// is put together of such texts with [`redacted!`](crate::redacted). It shows itself as it is: it may go anywhere.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Redacted(Cow<'static, str>);

impl Redacted {
    /// The parts, one behind the other.
    #[must_use]
    pub fn concat(parts: &[&dyn Part]) -> Self {
        Self(parts.iter().map(ToString::to_string).collect::<String>().into())
    }

    /// A text that the store holds: it was redacted before it was written. Only the store's own rows are read with this; a house
    /// rule sees to that.
    #[must_use]
    pub fn stored(text: String) -> Self {
        Self(text.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn push(&mut self, more: &Self) {
        self.0.to_mut().push_str(more);
    }

    /// A part of it.
    #[must_use]
    pub fn part(&self, of: impl for<'text> FnOnce(&'text str) -> &'text str) -> Self {
        Self(of(self.as_str()).to_owned().into())
    }

    /// The end of it, so many bytes long or a character shorter.
    #[must_use]
    pub fn last(&self, bytes: usize) -> Self {
        self.part(|text| {
            let from = text.len().saturating_sub(bytes);
            let from = (from..text.len()).find(|at| text.is_char_boundary(*at));
            &text[from.unwrap_or(text.len())..]
        })
    }
}

impl From<&'static str> for Redacted {
    fn from(text: &'static str) -> Self {
        Self(text.into())
    }
}

impl From<Redacted> for String {
    fn from(text: Redacted) -> Self {
        text.0.into_owned()
    }
}

impl Deref for Redacted {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PartialEq<&str> for Redacted {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// Reads a field of what the store holds; see [`Redacted::stored`].
pub(crate) fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Redacted, D::Error> {
    String::deserialize(deserializer).map(Redacted::stored)
}

mod sealed {
    /// Nobody else says what is free of secrets.
    pub trait Sealed {}
}

/// What a redacted text is put together of: redacted texts, texts written in the code, numbers.
pub trait Part: fmt::Display + sealed::Sealed {}

macro_rules! parts {
    ($($kind:ty),*) => {
        $(
            impl sealed::Sealed for $kind {}
            impl Part for $kind {}
        )*
    };
}

parts!(Redacted, &Redacted, &'static str, i32, u32, u64, usize);

/// A redacted text of these [`Part`]s: `redacted!["exit code ", code, ": ", quote]`.
#[macro_export]
macro_rules! redacted {
    ($($part:expr),+ $(,)?) => {
        $crate::redact::Redacted::concat(&[$(&$part as &dyn $crate::redact::Part),+])
    };
}

/// Knows the values to hide, in every form in which a shell or a program is likely to print them. Cheap to clone.
#[derive(Clone)]
pub struct Redactor(Option<Arc<Values>>);

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// A redactor of these values.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        Self(Values::new(values).map(Arc::new))
    }

    /// Redacts a whole text.
    #[must_use]
    pub fn redact(&self, text: &str) -> Redacted {
        if self.0.is_none() {
            return Redacted(text.to_owned().into());
        }
        let mut stream = self.stream();
        let mut shown = stream.push(text.as_bytes());
        shown.push(&stream.finish());
        shown
    }

    /// Redacts a stream of bytes: a value that is split over two chunks is found.
    #[must_use]
    pub fn stream(&self) -> RedactedStream {
        RedactedStream::new(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_hidden_in_every_usual_form() {
        let redactor = Redactor::new(["it's \"a\" $x `y`\nsecond line #", "abcdef", "abc", "no"]);
        assert_eq!(redactor.redact("abcdef abc ab no"), "*** *** ab no");
        for shown in [
            r#"it'\''s "a" $x `y`"#,
            "second line #",
            r#"it's \"a\" \$x \`y\`"#,
            r#"it\'s "a" $x `y`\nsecond line #"#,
        ] {
            let shown = redactor.redact(&format!("v={shown};"));
            assert!(!shown.contains("second line"), "{shown}");
        }
    }

    #[test]
    fn a_value_that_is_coloured_in_its_middle_is_hidden_and_colours_stay() {
        let redactor = Redactor::new(["KNOWN-SECRET-7b1f"]);
        let coloured =
            "v='KNOWN-\x1b[01;31m\x1b[KSECRET\x1b[m\x1b[K-7b1f' \x1b[1mbold\x1b[0m \x1b]0;title\x07 \x1b(Bend";
        let shown = "v='***\x1b[01;31m\x1b[K\x1b[m\x1b[K' \x1b[1mbold\x1b[0m \x1b]0;title\x07 \x1b(Bend";
        assert_eq!(redactor.redact(coloured), shown);
        let mut stream = redactor.stream();
        let mut pieces = Redacted::default();
        for byte in coloured.bytes() {
            pieces.push(&stream.push(&[byte]));
        }
        pieces.push(&stream.finish());
        assert_eq!(pieces, shown);
        assert_eq!(redactor.redact("an end \x1b[3"), "an end \x1b[3");
    }

    #[test]
    fn parts_make_a_redacted_text_and_a_part_of_one_is_one() {
        let redactor = Redactor::new(["s3cret"]);
        let quote = redactor.redact("no rule for s3cret");
        let mut whole = redacted!["exit code ", 7, ": ", quote];
        assert_eq!(whole, "exit code 7: no rule for ***");
        assert_eq!(
            whole.part(|text| text.trim_start_matches("exit ")),
            "code 7: no rule for ***"
        );
        whole.push(&"ä".into());
        assert_eq!((whole.last(6), whole.last(1)), (" ***ä".into(), Redacted::default()));
        assert_eq!(whole.last(100), whole);
        assert_eq!(
            format!("{whole:?} {whole}"),
            format!("{:?} {0}", "exit code 7: no rule for ***ä")
        );
    }

    /// The processor time that this thread has used.
    fn worked() -> std::time::Duration {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
            .unwrap()
            .into()
    }

    /// As many and as long as one project may have; equal characters were the worst for an automaton.
    #[test]
    fn the_largest_values_are_quick_to_know_and_to_hide() {
        let equal: Vec<String> = (0..100).map(|less| "a".repeat(100_000 - less)).collect();
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + (state >> 40) as u8 % 94)
        };
        let mixed: Vec<String> = (0..100).map(|_| (0..100_000).map(|_| random()).collect()).collect();
        for values in [equal, mixed] {
            let begun = worked();
            let redactor = Redactor::new(values.iter().map(String::as_str));
            assert_eq!(redactor.redact(&format!("<{}>", values[0])), "<***>");
            let text = "aab".repeat(100_000);
            assert_eq!(redactor.redact(&text), text.as_str());
            // Well under a second when optimised; a test's build is not. The work of this thread, however busy the machine is.
            let took = worked() - begun;
            assert!(took < std::time::Duration::from_secs(20), "{took:?}");
        }
    }

    proptest! {
        #[test]
        fn a_stream_in_any_pieces_gives_what_the_whole_gives(
            text in "(abc|abcd|xabcab|b|zz|q){0,20}",
            cuts in prop::collection::vec(0..60_usize, 0..8),
        ) {
            let redactor = Redactor::new(["abcd", "abc", "xabcabz", "zzq"]);
            let mut stream = redactor.stream();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut shown = Redacted::default();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                shown.push(&stream.push(&text.as_bytes()[from..cut]));
                from = cut;
            }
            shown.push(&stream.finish());
            prop_assert_eq!(shown, redactor.redact(&text));
        }

        #[test]
        fn the_leftmost_longest_value_is_hidden(text in "[abcxz]{0,40}", values in prop::collection::vec("[abcxz]{3,6}", 1..6)) {
            let mut plain = String::new();
            let mut rest = text.as_str();
            while let Some(first) = rest.chars().next() {
                let longest = values.iter().filter(|value| rest.starts_with(value.as_str())).map(String::len).max();
                plain.push_str(if longest.is_some() { IN_PLACE_OF_VALUE } else { &rest[..first.len_utf8()] });
                rest = &rest[longest.unwrap_or(1)..];
            }
            prop_assert_eq!(Redactor::new(values.iter().map(String::as_str)).redact(&text), plain.as_str());
        }

        #[test]
        fn long_values_with_a_common_beginning_are_hidden_in_any_pieces(
            ends in prop::collection::vec("[ab]{0,6}", 1..4),
            chunks in prop::collection::vec(1..400_usize, 1..6),
        ) {
            let long = "s3cr".repeat(200);
            let values: Vec<String> = ends.iter().map(|end| format!("{long}{end}")).collect();
            let redactor = Redactor::new(values.iter().map(String::as_str));
            let text = values.iter().map(|value| format!("<{value}>")).collect::<String>();
            let mut stream = redactor.stream();
            let mut shown = Redacted::default();
            let (mut rest, mut chunks) = (text.as_bytes(), chunks.into_iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(chunks.next().unwrap_or(1).min(rest.len()));
                shown.push(&stream.push(chunk));
                rest = after;
            }
            shown.push(&stream.finish());
            prop_assert_eq!(shown.as_str(), "<***>".repeat(values.len()));
        }
    }
}
