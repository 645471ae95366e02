//! What came of the scenarios: as JUnit's XML for machines, as one page for people.

use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it was seen.
    Passed,
    /// The target cannot do it.
    Skipped(String),
    /// Something was not as it must be.
    Failed {
        /// What.
        why: String,
        /// The last that the target said.
        tail: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Failed { why, .. } => write!(f, "FAILED: {why}"),
        }
    }
}

/// What came of one scenario.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// What a real board needs for it.
    pub needs: &'static str,
    /// How long it took.
    pub took: Duration,
    /// How long it took by the target's own time.
    pub board_time: Duration,
    /// What was measured: what, value.
    pub measures: Vec<(String, String)>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// How it ended.
    pub end: End,
}

/// What came of all.
#[derive(Clone, Debug)]
pub struct Report {
    /// What they ran on.
    pub target: String,
    /// What that is, and its versions.
    pub about: Vec<(String, String)>,
    /// One for each scenario.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failed() == 0
    }

    fn failed(&self) -> usize {
        self.count(|end| matches!(end, End::Failed { .. }))
    }

    fn skipped(&self) -> usize {
        self.count(|end| matches!(end, End::Skipped(_)))
    }

    fn count(&self, is: impl Fn(&End) -> bool) -> usize {
        self.outcomes.iter().filter(|o| is(&o.end)).count()
    }

    fn took(&self) -> Duration {
        self.outcomes.iter().map(|o| o.took).sum()
    }

    /// Writes `junit.xml` and `index.html` into the folder.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("junit.xml"), self.junit())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        std::fs::write(folder.join("index.html"), self.page(now.as_secs()))
    }

    /// JUnit's XML, as the Jenkins and Surefire schemas have it.
    #[must_use]
    pub fn junit(&self) -> String {
        let counts = format!(
            "tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"{:.3}\"",
            self.outcomes.len(),
            self.failed(),
            self.skipped(),
            self.took().as_secs_f64()
        );
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let name = xml(&format!("scenarios on {}", self.target));
        // Only what the schemas name for the outermost element.
        let _ = writeln!(out, "<testsuites name=\"{name}\">");
        let _ = writeln!(out, "  <testsuite name=\"{name}\" {counts}>");
        properties(&mut out, "    ", &self.about);
        for o in &self.outcomes {
            let class = xml(&format!("scenarios.{}", self.target.replace(['/', '.'], "-")));
            let _ = writeln!(
                out,
                "    <testcase name=\"{}\" classname=\"{class}\" time=\"{:.3}\">",
                xml(o.name),
                o.took.as_secs_f64()
            );
            properties(&mut out, "      ", &o.measures);
            match &o.end {
                End::Passed => {}
                End::Skipped(why) => {
                    let _ = writeln!(out, "      <skipped message=\"{}\"/>", xml(why));
                }
                End::Failed { why, tail } => {
                    let first = why.lines().next().unwrap_or_default();
                    let body = xml(&format!("{why}\n\n{tail}"));
                    let _ = writeln!(
                        out,
                        "      <failure message=\"{}\" type=\"scenario\">{body}</failure>",
                        xml(first)
                    );
                }
            }
            let notes = [&[o.shows.to_owned()], o.notes.as_slice()].concat().join("\n");
            let _ = writeln!(out, "      <system-out>{}</system-out>", xml(&notes));
            out.push_str("    </testcase>\n");
        }
        out.push_str("  </testsuite>\n</testsuites>\n");
        out
    }

    /// A page that needs nothing beside itself.
    #[must_use]
    pub fn page(&self, now_s: u64) -> String {
        let total = self.outcomes.len();
        let (failed, skipped) = (self.failed(), self.skipped());
        let verdict = match failed {
            0 => format!("{} passed, {skipped} skipped", total - skipped),
            _ => format!(
                "{failed} FAILED, {} passed, {skipped} skipped",
                total - skipped - failed
            ),
        };
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Scenarios on {target}: {verdict}</title>\n<style>{STYLE}</style></head><body>\n\
             <h1>Scenarios on {target}</h1>\n<p class=\"verdict {class}\">{verdict}</p>\n\
             <p class=\"quiet\">{when}, {took} in all</p>\n",
            target = html(&self.target),
            class = if failed == 0 { "passed" } else { "failed" },
            when = date(now_s),
            took = time(self.took()),
        );
        table(&mut out, &self.about);
        out.push_str("<table class=\"all\"><tr><th>scenario</th><th>came to</th><th class=\"number\">took</th></tr>\n");
        for o in &self.outcomes {
            let (class, word) = word(&o.end);
            let _ = writeln!(
                out,
                "<tr><td><a href=\"#{0}\">{0}</a></td><td class=\"{class}\">{word}</td><td class=\"number\">{1}</td></tr>",
                html(o.name),
                time(o.took)
            );
        }
        out.push_str("</table>\n");
        for o in &self.outcomes {
            o.section(&mut out);
        }
        out.push_str("</body></html>\n");
        out
    }
}

impl Outcome {
    fn section(&self, out: &mut String) {
        let (class, word) = word(&self.end);
        let _ = writeln!(
            out,
            "<section id=\"{0}\"><h2>{0} <span class=\"{class}\">{word}</span></h2>\n<p>{1}.</p>",
            html(self.name),
            html(&capitalised(self.shows))
        );
        let virtual_time = self.board_time.abs_diff(self.took) > Duration::from_secs(1);
        let own = match virtual_time {
            true => format!(" ({} of the target's own time)", time(self.board_time)),
            false => String::new(),
        };
        let _ = writeln!(
            out,
            "<p class=\"quiet\">took {}{own}; needs {}</p>",
            time(self.took),
            html(self.needs)
        );
        match &self.end {
            End::Passed => {}
            End::Skipped(why) => {
                let _ = writeln!(out, "<p class=\"why\"><b>Skipped:</b> {}</p>", html(why));
            }
            End::Failed { why, tail } => {
                let _ = writeln!(out, "<p class=\"why\"><b>Failed:</b></p><pre>{}</pre>", html(why));
                let _ = writeln!(out, "<p>The last that the target said:</p><pre>{}</pre>", html(tail));
            }
        }
        table(out, &self.measures);
        if !self.notes.is_empty() {
            out.push_str("<ul>");
            for note in &self.notes {
                let _ = write!(out, "<li>{}</li>", html(note));
            }
            out.push_str("</ul>\n");
        }
        out.push_str("</section>\n");
    }
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{margin-bottom:.2rem}h2{margin:0 0 .3rem;font-size:1.2rem}.verdict{font-size:1.3rem;margin:.2rem 0}\
table{border-collapse:collapse;margin:.6rem 0;width:100%}td,th{border-bottom:1px solid #d8dee4;padding:.3rem .6rem;text-align:left;\
vertical-align:top}td:first-child{width:45%}.number{text-align:right;font-variant-numeric:tabular-nums}\
section{border:1px solid #d8dee4;border-radius:8px;padding:1rem;margin:1rem 0}.quiet{color:#59636e;margin:.2rem 0}\
.passed{color:#116329}.skipped{color:#7d4e00}.failed{color:#a40e26}h2 span{font-size:1rem;font-weight:600}\
pre{background:#f6f8fa;padding:.8rem;overflow:auto;border-radius:6px;font-size:13px}.why{margin:.4rem 0}";

fn word(end: &End) -> (&'static str, &'static str) {
    match end {
        End::Passed => ("passed", "passed"),
        End::Skipped(_) => ("skipped", "skipped"),
        End::Failed { .. } => ("failed", "FAILED"),
    }
}

fn table(out: &mut String, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    out.push_str("<table>");
    for (what, value) in rows {
        let _ = write!(out, "<tr><td>{}</td><td>{}</td></tr>", html(what), html(value));
    }
    out.push_str("</table>\n");
}

fn properties(out: &mut String, indent: &str, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "{indent}<properties>");
    for (what, value) in rows {
        let _ = writeln!(
            out,
            "{indent}  <property name=\"{}\" value=\"{}\"/>",
            xml(what),
            xml(value)
        );
    }
    let _ = writeln!(out, "{indent}</properties>");
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A day and time of UTC (the civil calendar from days, as by Howard Hinnant).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        rest / 3600,
        rest % 3600 / 60
    )
}

/// Text of XML: control characters of a serial line have no place in it.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

fn html(text: &str) -> String {
    xml(text)
}

#[cfg(test)]
mod tests;
