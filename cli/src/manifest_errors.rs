//! A manifest's mistakes, shown where they are: the line, and a caret under the place.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

/// Most mistakes to show; one typo can cause many.
const SHOWN: usize = 20;
/// Most characters of a source line to show.
const LINE_CHARS: usize = 120;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ManifestError {
    #[serde(default)]
    pub(crate) line: u32,
    #[serde(default)]
    pub(crate) column: u32,
    #[serde(default)]
    pub(crate) pointer: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) hint: Option<String>,
}

/// The mistakes in the details of a refusal; none when it was refused for something else.
pub(crate) fn from_details(details: &Value) -> Vec<ManifestError> {
    let list = details.get("errors").unwrap_or(details);
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|v| ManifestError::deserialize(v).ok())
        .collect()
}

/// All mistakes as text.
pub(crate) fn render(source_name: &str, text: &str, errors: &[ManifestError]) -> String {
    let mut out = String::new();
    for error in errors.iter().take(SHOWN) {
        render_one(&mut out, source_name, text, error);
    }
    if errors.len() > SHOWN {
        let _ = writeln!(out, "{source_name}: and {} more", errors.len() - SHOWN);
    }
    out
}

fn render_one(out: &mut String, source_name: &str, text: &str, e: &ManifestError) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{source_name}:{}:{}", e.line, e.column);
    if !e.pointer.is_empty() {
        let _ = write!(out, " {}", e.pointer);
    }
    let _ = write!(out, ": {}", e.message);
    if let Some(hint) = &e.hint {
        let _ = write!(out, " ({hint})");
    }
    out.push('\n');
    let Some(line) = e.line.checked_sub(1).and_then(|i| text.lines().nth(i as usize)) else {
        return;
    };
    let column = (e.column.max(1) - 1) as usize;
    // Of a very long line, the part around the place.
    let skip = if column >= LINE_CHARS {
        column - LINE_CHARS / 2
    } else {
        0
    };
    let visible = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    let shown: String = line.chars().skip(skip).take(LINE_CHARS).map(visible).collect();
    let before = shown.chars().take(column - skip);
    // Tabs stay tabs, so that the caret stands where the terminal puts the character.
    let pad: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let number = e.line.to_string();
    let gutter = " ".repeat(number.len());
    let _ = writeln!(out, " {number} | {shown}");
    let _ = writeln!(out, " {gutter} | {pad}^");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: u32, column: u32) -> ManifestError {
        ManifestError {
            line,
            column,
            pointer: "/x".into(),
            message: "no".into(),
            hint: None,
        }
    }

    #[test]
    fn the_caret_stands_under_the_place() {
        let text = "a: 1\n\tmemry: 64Mi\n";
        assert_eq!(
            render("m.yaml", text, &[error(2, 2)]),
            "m.yaml:2:2 /x: no\n 2 | \tmemry: 64Mi\n   | \t^\n"
        );
    }

    #[test]
    fn places_outside_the_text_are_survived() {
        for (line, column) in [(0, 0), (9, 1), (1, 500), (u32::MAX, u32::MAX)] {
            assert!(render("m", "abc", &[error(line, column)]).starts_with("m:"));
        }
        let long = "x".repeat(100_000);
        assert!(render("m", &long, &[error(1, 90_000)]).len() < 400);
        assert!(render("m", "", &vec![error(1, 1); 25]).ends_with("and 5 more\n"));
    }

    #[test]
    fn details_may_be_a_list_or_hold_one() {
        let list = serde_json::json!([{"line": 1, "column": 2, "pointer": "", "message": "m", "hint": null}]);
        assert_eq!(from_details(&list).len(), 1);
        assert_eq!(from_details(&serde_json::json!({ "errors": list })).len(), 1);
        assert_eq!(from_details(&serde_json::json!({ "reasons": ["r"] })).len(), 0);
        assert_eq!(from_details(&Value::Null).len(), 0);
    }
}
