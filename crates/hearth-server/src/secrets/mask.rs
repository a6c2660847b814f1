//! Hides the values of variables in text that people will read. Works on a stream: a value split over two pieces is found.
//! Leftmost first, and the longest of those that begin at one place.

use std::sync::Arc;

/// What stands in place of a value.
pub const MASK: &str = "***";
/// Shorter values are not secrets: masking every `1` or `no` would make output unreadable and hide nothing.
const MIN_BYTES: usize = 3;
/// How much of a long value must be there before it is hidden, and so the most that a stream holds back. From there on
/// everything is hidden that goes on as the value does: that much of a secret is one already, and neither the cost of
/// building a masker nor that of using it depends on how long the values are.
const KEY_BYTES: usize = 256;

/// Knows the values to hide, in every spelling a shell or a program is likely to print them.
#[derive(Clone)]
pub struct Masker(Option<Arc<Patterns>>);

/// The spellings, sorted. No automaton: the states of one for 100 values of 100,000 characters would fill gigabytes, while
/// a sorted list finds the longest spelling at a place by bisection.
struct Patterns {
    sorted: Vec<Vec<u8>>,
    /// For each one, the nearest whose key is a shorter beginning of its key.
    shorter: Vec<Option<usize>>,
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
        let mut sorted: Vec<Vec<u8>> = values.into_iter().flat_map(spellings).map(String::into_bytes).collect();
        sorted.retain(|pattern| pattern.len() >= MIN_BYTES);
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() {
            return Self(None);
        }
        let shorter = shorter_keys(&sorted);
        Self(Some(Arc::new(Patterns { sorted, shorter })))
    }

    /// Masks a whole text.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        if self.0.is_none() {
            return text.to_owned();
        }
        let mut stream = self.stream();
        let mut shown = stream.push(text.as_bytes());
        shown.extend(stream.finish());
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Masks a stream.
    #[must_use]
    pub fn stream(&self) -> MaskedStream {
        MaskedStream {
            masker: self.clone(),
            held: Vec::new(),
            inside: None,
        }
    }
}

/// One stream of bytes on its way to people.
#[derive(Debug)]
pub struct MaskedStream {
    masker: Masker,
    /// The end of what came so far, when it may be the beginning of a value.
    held: Vec<u8>,
    /// The long value that was found and whose rest is still to come.
    inside: Option<Inside>,
}

/// Within a long value: those of the sorted spellings that agree with everything so far, and how far that is.
#[derive(Debug, Clone)]
struct Inside {
    low: usize,
    high: usize,
    at: usize,
}

impl MaskedStream {
    /// Takes a piece and gives what is safe to show.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.masker.0.is_none() {
            return piece.to_vec();
        }
        self.held.extend_from_slice(piece);
        self.advance(false)
    }

    /// Nothing follows: gives the rest.
    pub fn finish(&mut self) -> Vec<u8> {
        self.advance(true)
    }

    fn advance(&mut self, is_end: bool) -> Vec<u8> {
        let Some(known) = self.masker.0.clone() else {
            return std::mem::take(&mut self.held);
        };
        let mut shown = Vec::with_capacity(self.held.len());
        let mut done = 0;
        while done < self.held.len() {
            let rest = &self.held[done..];
            if let Some(inside) = self.inside.take() {
                let (hidden, inside) = known.follow(inside, rest);
                done += hidden;
                self.inside = inside;
                continue;
            }
            if !is_end && known.may_grow(rest) {
                break;
            }
            match known.longest_at(rest) {
                None => {
                    shown.push(rest[0]);
                    done += 1;
                }
                Some(found) => {
                    shown.extend_from_slice(MASK.as_bytes());
                    done += key(&known.sorted[found]).len();
                    self.inside = known.inside_of(found);
                }
            }
        }
        self.held.drain(..done);
        shown
    }
}

/// The part of a spelling that is looked for.
fn key(pattern: &[u8]) -> &[u8] {
    &pattern[..pattern.len().min(KEY_BYTES)]
}

/// Keys that begin with another key follow it in the sorted list, so a stack of those still open finds each one's nearest.
fn shorter_keys(sorted: &[Vec<u8>]) -> Vec<Option<usize>> {
    let mut open: Vec<usize> = Vec::new();
    let mut shorter = Vec::with_capacity(sorted.len());
    for (index, pattern) in sorted.iter().enumerate() {
        let key_here = key(pattern);
        let is_shorter = |other: &usize| {
            let other = key(&sorted[*other]);
            other.len() < key_here.len() && key_here.starts_with(other)
        };
        while open.last().is_some_and(|other| !is_shorter(other)) {
            open.pop();
        }
        shorter.push(open.last().copied());
        open.push(index);
    }
    shorter
}

impl Patterns {
    /// Whether `text` is a true beginning of some key.
    fn may_grow(&self, text: &[u8]) -> bool {
        if text.len() >= KEY_BYTES {
            return false;
        }
        let at = self.sorted.partition_point(|pattern| key(pattern) <= text);
        self.sorted.get(at).is_some_and(|pattern| pattern.starts_with(text))
    }

    /// The spelling with the longest key that `text` begins with.
    fn longest_at(&self, text: &[u8]) -> Option<usize> {
        let text = key(text);
        // Everything sorted between a key and a text that begins with it begins with that key too: it is the last one
        // not above the text, or one of those that are beginnings of it.
        let mut candidate = self
            .sorted
            .partition_point(|pattern| key(pattern) <= text)
            .checked_sub(1);
        while let Some(at) = candidate.filter(|at| !text.starts_with(key(&self.sorted[*at]))) {
            candidate = self.shorter[at];
        }
        candidate
    }

    /// Where to go on after this one's key, when it or one with the same key is longer than that.
    fn inside_of(&self, found: usize) -> Option<Inside> {
        let wanted = key(&self.sorted[found]);
        let low = self.sorted.partition_point(|pattern| key(pattern) < wanted);
        let high = self.sorted.partition_point(|pattern| key(pattern) <= wanted);
        (wanted.len() == KEY_BYTES).then_some(Inside {
            low,
            high,
            at: KEY_BYTES,
        })
    }

    /// How much of `text` goes on as one of these values does, and where it stands when the text ends before them.
    fn follow(&self, mut inside: Inside, text: &[u8]) -> (usize, Option<Inside>) {
        let mut hidden = 0;
        loop {
            let among = &self.sorted[inside.low..inside.high];
            if let [only] = among {
                // The usual case, at the speed of a comparison.
                let pairs = only[inside.at..].iter().zip(&text[hidden..]);
                let same = pairs.take_while(|(wanted, found)| wanted == found).count();
                (hidden, inside.at) = (hidden + same, inside.at + same);
                let goes_on = hidden == text.len() && inside.at < only.len();
                return (hidden, goes_on.then_some(inside));
            }
            let Some(next) = text.get(hidden) else {
                return (hidden, Some(inside));
            };
            // They agree up to here, so they are sorted by what follows; one that ends here comes first.
            let next = Some(next);
            let low = among.partition_point(|pattern| pattern.get(inside.at) < next);
            let high = among.partition_point(|pattern| pattern.get(inside.at) <= next);
            if low == high {
                return (hidden, None);
            }
            (inside.low, inside.high) = (inside.low + low, inside.low + high);
            inside.at += 1;
            hidden += 1;
        }
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
    let mut escaped = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(special) {
        let (before, from) = rest.split_at(at);
        let mut chars = from.chars();
        escaped.push_str(before);
        escaped.push('\\');
        escaped.extend(chars.next());
        rest = chars.as_str();
    }
    escaped + rest
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
            let masker = Masker::new(values.iter().map(String::as_str));
            assert_eq!(masker.mask(&format!("<{}>", values[0])), "<***>");
            let text = "aab".repeat(100_000);
            assert_eq!(masker.mask(&text), text);
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

        #[test]
        fn the_leftmost_longest_value_is_hidden(text in "[abcxz]{0,40}", values in prop::collection::vec("[abcxz]{3,6}", 1..6)) {
            let mut plain = String::new();
            let mut rest = text.as_str();
            while let Some(first) = rest.chars().next() {
                let longest = values.iter().filter(|value| rest.starts_with(value.as_str())).map(String::len).max();
                plain.push_str(if longest.is_some() { MASK } else { &rest[..first.len_utf8()] });
                rest = &rest[longest.unwrap_or(1)..];
            }
            prop_assert_eq!(Masker::new(values.iter().map(String::as_str)).mask(&text), plain);
        }

        #[test]
        fn long_values_with_a_common_beginning_are_hidden_in_any_pieces(
            ends in prop::collection::vec("[ab]{0,6}", 1..4),
            pieces in prop::collection::vec(1..400_usize, 1..6),
        ) {
            let long = "s3cr".repeat(200);
            let values: Vec<String> = ends.iter().map(|end| format!("{long}{end}")).collect();
            let masker = Masker::new(values.iter().map(String::as_str));
            let text = values.iter().map(|value| format!("<{value}>")).collect::<String>();
            let mut stream = masker.stream();
            let mut shown = Vec::new();
            let (mut rest, mut pieces) = (text.as_bytes(), pieces.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(pieces.next().unwrap_or(1).min(rest.len()));
                shown.extend(stream.push(piece));
                rest = after;
            }
            shown.extend(stream.finish());
            prop_assert_eq!(String::from_utf8(shown).unwrap(), "<***>".repeat(values.len()));
        }
    }
}
