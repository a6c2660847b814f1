//! Hides the values of variables in text that people will read. Works on a stream: a value split over two pieces is found.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

/// What stands in place of a value.
pub const MASK: &str = "***";
/// Shorter values are not secrets: masking every `1` or `no` would make output unreadable and hide nothing.
const MIN_BYTES: usize = 3;

/// Knows the values to hide, in every spelling a shell or a program is likely to print them.
#[derive(Clone)]
pub struct Masker(Option<Arc<Patterns>>);

struct Patterns {
    finder: AhoCorasick,
    patterns: Vec<Vec<u8>>,
    longest: usize,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masker")
    }
}

impl Masker {
    /// A masker for these values.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut patterns: Vec<Vec<u8>> = values.into_iter().flat_map(spellings).map(String::into_bytes).collect();
        patterns.retain(|pattern| pattern.len() >= MIN_BYTES);
        patterns.sort();
        patterns.dedup();
        // Building fails only past 2^31 states: 100 variables of 100,000 characters in all spellings stay below.
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns);
        match finder {
            Ok(finder) if !patterns.is_empty() => {
                let longest = patterns.iter().map(Vec::len).max().unwrap_or_default();
                Self(Some(Arc::new(Patterns {
                    finder,
                    patterns,
                    longest,
                })))
            }
            _ => Self(None),
        }
    }

    /// Masks a whole text.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        match &self.0 {
            None => text.to_owned(),
            Some(known) => {
                let masks = vec![MASK; known.patterns.len()];
                known.finder.replace_all(text, &masks)
            }
        }
    }

    /// Masks a stream.
    #[must_use]
    pub fn stream(&self) -> MaskedStream {
        MaskedStream {
            masker: self.clone(),
            held: Vec::new(),
        }
    }
}

/// One stream of bytes on its way to people.
#[derive(Debug)]
pub struct MaskedStream {
    masker: Masker,
    /// The end of what came so far, when it may be the beginning of a value.
    held: Vec<u8>,
}

impl MaskedStream {
    /// Takes a piece and gives what is safe to show.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let Some(known) = self.masker.0.clone() else {
            return piece.to_vec();
        };
        self.held.extend_from_slice(piece);
        let safe = self.held.len() - known.open_suffix(&self.held);
        // A value that ends within the held part but began before it must not be cut: mask first, then look where.
        let mut shown = Vec::with_capacity(safe);
        let mut done = 0;
        for found in known.finder.find_iter(&self.held) {
            // It may still grow into a longer value that begins at the same place.
            if found.start() >= safe {
                break;
            }
            shown.extend_from_slice(&self.held[done..found.start()]);
            shown.extend_from_slice(MASK.as_bytes());
            done = found.end();
        }
        if done < safe {
            shown.extend_from_slice(&self.held[done..safe]);
            done = safe;
        }
        self.held.drain(..done);
        shown
    }

    /// Nothing follows: gives the rest.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let Some(known) = &self.masker.0 else { return held };
        let masks = vec![MASK.as_bytes(); known.patterns.len()];
        known.finder.replace_all_bytes(&held, &masks)
    }
}

impl Patterns {
    /// Length of the longest end of `text` that is a true beginning of some value.
    fn open_suffix(&self, text: &[u8]) -> usize {
        let longest = text.len().min(self.longest.saturating_sub(1));
        (1..=longest)
            .rev()
            .find(|length| {
                let suffix = &text[text.len() - length..];
                // Patterns are sorted: those that begin with the suffix follow its place in the order.
                let at = self.patterns.partition_point(|pattern| pattern.as_slice() < suffix);
                self.patterns[at..]
                    .iter()
                    .take_while(|pattern| pattern.starts_with(suffix))
                    .any(|pattern| pattern.len() > suffix.len())
            })
            .unwrap_or_default()
    }
}

/// The value itself, its lines, and how shells and JSON print it.
fn spellings(value: &str) -> Vec<String> {
    let mut all = vec![
        value.to_owned(),
        value.replace('\'', r"'\''"),
        escaped(value, &['\\', '"', '$', '`']),
        escaped(value, &['\\', '\''])
            .replace('\n', "\\n")
            .replace('\t', "\\t")
            .replace('\r', "\\r"),
    ];
    if let Ok(json) = serde_json::to_string(value) {
        all.push(json.trim_matches('"').to_owned());
    }
    if value.contains('\n') {
        all.extend(value.lines().map(|line| line.trim().to_owned()));
    }
    all
}

fn escaped(value: &str, special: &[char]) -> String {
    value
        .chars()
        .flat_map(|c| special.contains(&c).then_some('\\').into_iter().chain([c]))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_hidden_in_every_usual_spelling() {
        let masker = Masker::new(["it's \"a\" $x `y`\nsecond line #", "abcdef", "abc", "no"]);
        assert_eq!(masker.mask("abcdef abc ab no"), "*** *** ab no");
        for shown in [
            r#"it'\''s "a" $x `y`"#,
            "second line #",
            r#"it's \"a\" \$x \`y\`"#,
            r#"it\'s "a" $x `y`\nsecond line #"#,
        ] {
            let masked = masker.mask(&format!("v={shown};"));
            assert!(!masked.contains("second line"), "{masked}");
        }
    }

    proptest! {
        #[test]
        fn a_stream_in_any_pieces_gives_what_the_whole_gives(
            text in "(abc|abcd|xabcab|b|zz|q){0,20}",
            cuts in prop::collection::vec(0..60_usize, 0..8),
        ) {
            let masker = Masker::new(["abcd", "abc", "xabcabz", "zzq"]);
            let mut stream = masker.stream();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut shown = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                shown.extend(stream.push(&text.as_bytes()[from..cut]));
                from = cut;
            }
            shown.extend(stream.finish());
            prop_assert_eq!(String::from_utf8(shown).unwrap(), masker.mask(&text));
        }
    }
}
