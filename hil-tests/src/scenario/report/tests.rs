use super::*;

fn report() -> Report {
    let outcome = |name, end| Outcome {
        name,
        shows: "it <works>",
        needs: "nothing",
        took: Duration::from_millis(1500),
        board_time: Duration::from_secs(100),
        measures: vec![("a & b".into(), "\"1\" MiB".into())],
        notes: vec!["noted".into()],
        end,
    };
    Report {
        target: "labgrid:pi5.yaml".into(),
        about: vec![("kernel".into(), "6.1".into())],
        outcomes: vec![
            outcome("one", End::Passed),
            outcome("two", End::Skipped("no \"NPU\"".into())),
            outcome(
                "three",
                End::Failed {
                    why: "it went <wrong>\nhere".into(),
                    tail: "\u{1b}[0mthe last".into(),
                },
            ),
        ],
    }
}

/// Elements open and close in order, and every attribute is quoted: enough of XML to notice what was not escaped.
fn is_well_formed(text: &str) -> bool {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let Some(end) = rest[at..].find('>') else { return false };
        let tag = &rest[at + 1..at + end];
        rest = &rest[at + end + 1..];
        if tag.contains('<') || !tag.matches('"').count().is_multiple_of(2) {
            return false;
        }
        if tag.starts_with(['?', '!']) || tag.ends_with('/') {
            continue;
        }
        match tag.strip_prefix('/') {
            Some(name) if open.pop() != Some(name.to_owned()) => return false,
            Some(_) => {}
            None => open.push(tag.split(' ').next().unwrap_or_default().to_owned()),
        }
    }
    open.is_empty()
}

#[test]
fn junit_counts_and_says_why() {
    let text = report().junit();
    assert!(is_well_formed(&text), "{text}");
    for part in [
        "tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\" time=\"4.500\"",
        "<skipped message=\"no &quot;NPU&quot;\"/>",
        "<failure message=\"it went &lt;wrong&gt;\" type=\"scenario\">",
        "<property name=\"a &amp; b\" value=\"&quot;1&quot; MiB\"/>",
        "\u{fffd}[0mthe last",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn the_page_needs_nothing_beside_itself() {
    let text = report().page(1_790_000_000);
    assert!(is_well_formed(&text.replace("<meta charset=\"utf-8\">", "").replace(
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">",
        ""
    )));
    assert!(!text.contains("http"), "{text}");
    for part in [
        "1 FAILED, 1 passed, 1 skipped",
        "no &quot;NPU&quot;",
        "1 min 40 s",
        "2026-09-21 14:13 UTC",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!report().is_good());
}

#[test]
fn days_are_those_of_the_calendar() {
    for (seconds, expected) in [
        (0, "1970-01-01 00:00 UTC"),
        (951_782_400, "2000-02-29 00:00 UTC"),
        (1_735_689_599, "2024-12-31 23:59 UTC"),
    ] {
        assert_eq!(date(seconds), expected);
    }
}
