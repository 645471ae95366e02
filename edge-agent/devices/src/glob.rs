//! Patterns in the paths of configured devices: `*`, `?` and `[a-c]` within one component.

use std::path::{Path, PathBuf};

use crate::tree::Tree;

/// Whether a path component has to be matched rather than looked up.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// All paths that match, in order, at most `limit` + 1 of them so that a caller sees that there are too many. A leading
/// dot must be written, as in a shell.
pub(crate) fn expand(tree: &Tree, pattern: &str, limit: usize) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|p| !p.is_empty()) {
        found = if is_pattern(part) {
            let matches = |folder: &PathBuf| {
                let names = tree.names(folder).into_iter();
                let fits = names.filter(|n| (part.starts_with('.') || !n.starts_with('.')) && matches(part, n));
                fits.map(|n| folder.join(n)).take(limit + 1).collect::<Vec<_>>()
            };
            found.iter().flat_map(matches).take(limit + 1).collect()
        } else {
            found.into_iter().map(|folder| folder.join(part)).collect()
        };
    }
    found.retain(|path| exists(tree, path));
    found
}

fn exists(tree: &Tree, path: &Path) -> bool {
    tree.resolve(path).is_ok()
}

/// Whether a name fits a pattern. Linear in the product of the lengths: a star only ever returns to the last one.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => class(&pattern, p, name[n]),
            Some(c) if *c == name[n] => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((after, from))) => {
                (p, n) = (after, from + 1);
                star = Some((after, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on after the class that begins at `start`, if `c` is in it. A class without end is no class.
fn class(pattern: &[char], start: usize, c: char) -> Option<usize> {
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|x| *x == ']')?;
    let mut members = &pattern[start + 1..end];
    let negated = matches!(members.first(), Some('!' | '^'));
    members = if negated { &members[1..] } else { members };
    let mut inside = false;
    while let Some(first) = members.first() {
        if let [low, '-', high, ..] = members {
            inside |= (*low..=*high).contains(&c);
            members = &members[3..];
        } else {
            inside |= *first == c;
            members = &members[1..];
        }
    }
    (inside != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_matched_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("ttyUSB*", "ttyUSB0", true),
            ("ttyUSB*", "ttyUSB", true),
            ("ttyUSB*", "ttyACM0", false),
            ("tty?SB[0-3]", "ttyUSB2", true),
            ("ttyUSB[0-3]", "ttyUSB4", false),
            ("ttyUSB[!0-3]", "ttyUSB4", true),
            ("*-port0", "usb-FTDI-if00-port0", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("[", "[", false),
            ("*", "", true),
            ("?", "ä", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_ends(pattern in "[a\\*\\?\\[\\]!-]{0,60}", name in "[a-]{0,200}") {
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn a_name_matches_itself_and_its_beginning_with_a_star(name in "[a-zA-Z0-9_.-]{1,30}", cut in 0usize..30) {
            prop_assert!(matches(&name, &name));
            let star = format!("{}*", &name[..cut.min(name.len())]);
            prop_assert!(matches(&star, &name));
        }
    }
}
