//! The values that a redactor hides, in the forms in which they are printed, and how they are found in text: leftmost first, and the
//! longest of those that begin at one place.

/// Shorter values are not secrets: redacting every `1` or `no` would make output unreadable and hide nothing.
const MIN_BYTES: usize = 3;
/// How much of a long value must be there before it is hidden, and so the most that a stream holds back. From there on
/// everything is hidden that continues as the value does: that much of a secret is one already, and neither the cost of
/// building a redactor nor that of using it depends on how long the values are.
const KEY_BYTES: usize = 256;

/// The forms of all values, sorted. No automaton: the states of one for 100 values of 100,000 characters would fill gigabytes, while
/// a sorted list finds the longest form at a place by bisection.
pub(super) struct Values {
    sorted: Vec<Vec<u8>>,
    /// For each one, the nearest whose key is a shorter beginning of its key.
    shorter: Vec<Option<usize>>,
}

/// Within a long value: those of the sorted forms that agree with everything so far, and how far that is.
pub(super) struct Inside {
    low: usize,
    high: usize,
    at: usize,
}

/// The part of a form that is looked for.
pub(super) fn key(form: &[u8]) -> &[u8] {
    &form[..form.len().min(KEY_BYTES)]
}

/// Keys that begin with another key follow it in the sorted list, so a stack of those still open finds each one's nearest.
fn shorter_keys(sorted: &[Vec<u8>]) -> Vec<Option<usize>> {
    let mut open: Vec<usize> = Vec::new();
    let mut shorter = Vec::with_capacity(sorted.len());
    for (index, form) in sorted.iter().enumerate() {
        let key_here = key(form);
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

impl Values {
    /// `None` when there is nothing to hide.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut sorted: Vec<Vec<u8>> = values.into_iter().flat_map(forms).map(String::into_bytes).collect();
        sorted.retain(|form| form.len() >= MIN_BYTES);
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() {
            return None;
        }
        let shorter = shorter_keys(&sorted);
        Some(Self { sorted, shorter })
    }

    /// One of them, by its place.
    pub(super) fn form(&self, at: usize) -> &[u8] {
        &self.sorted[at]
    }

    /// Whether `text` is a true beginning of some key.
    pub(super) fn may_grow(&self, text: &[u8]) -> bool {
        if text.len() >= KEY_BYTES {
            return false;
        }
        let at = self.sorted.partition_point(|form| key(form) <= text);
        self.sorted.get(at).is_some_and(|form| form.starts_with(text))
    }

    /// The form with the longest key that `text` begins with.
    pub(super) fn longest_at(&self, text: &[u8]) -> Option<usize> {
        let text = key(text);
        // Everything sorted between a key and a text that begins with it begins with that key too: it is the last one
        // not above the text, or one of those that are beginnings of it.
        let mut candidate = self.sorted.partition_point(|form| key(form) <= text).checked_sub(1);
        while let Some(at) = candidate.filter(|at| !text.starts_with(key(&self.sorted[*at]))) {
            candidate = self.shorter[at];
        }
        candidate
    }

    /// Where to continue after this one's key, when it or one with the same key is longer than that.
    pub(super) fn inside_of(&self, found: usize) -> Option<Inside> {
        let wanted = key(&self.sorted[found]);
        let low = self.sorted.partition_point(|form| key(form) < wanted);
        let high = self.sorted.partition_point(|form| key(form) <= wanted);
        (wanted.len() == KEY_BYTES).then_some(Inside {
            low,
            high,
            at: KEY_BYTES,
        })
    }

    /// How much of `text` continues as one of these values does, and where it stands when the text ends before them.
    pub(super) fn follow(&self, mut inside: Inside, text: &[u8]) -> (usize, Option<Inside>) {
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
            let low = among.partition_point(|form| form.get(inside.at) < next);
            let high = among.partition_point(|form| form.get(inside.at) <= next);
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
fn forms(value: &str) -> Vec<String> {
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
