//! What is printed, and how: aligned tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, for people
    #[default]
    Table,
    /// JSON, as the hub gave it
    Json,
    /// The same as YAML
    Yaml,
}

/// Where results go.
pub(crate) struct Screen<'a> {
    out: Box<dyn Write + 'a>,
    is_terminal: bool,
    format: Format,
    now_ms: u64,
}

impl<'a> Screen<'a> {
    pub(crate) fn new(out: Box<dyn Write + 'a>, is_terminal: bool, format: Format, now_ms: u64) -> Self {
        Self {
            out,
            is_terminal,
            format,
            now_ms,
        }
    }

    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Prints a value as JSON or YAML, or lets `people` print it as text.
    pub(crate) fn document(
        &mut self,
        value: &Value,
        people: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => people(self),
            Format::Json => {
                serde_json::to_writer_pretty(&mut self.out, value)?;
                self.out.write_all(b"\n")
            }
            Format::Yaml => {
                let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
                self.out.write_all(text.as_bytes())?;
                if text.ends_with('\n') {
                    Ok(())
                } else {
                    self.out.write_all(b"\n")
                }
            }
        }
    }

    /// One line, without what could steer a terminal.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", printable(text).trim_end())
    }

    /// Text of several lines that came from a node.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        if self.is_terminal {
            let safe: String = text
                .chars()
                .map(|c| if steers(c) && c != '\n' { '\u{fffd}' } else { c })
                .collect();
            return write!(self.out, "{safe}{end}");
        }
        write!(self.out, "{text}{end}")
    }

    /// Bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    pub(crate) fn table(&mut self, table: &Table) -> io::Result<()> {
        self.out.write_all(table.render("").as_bytes())
    }

    pub(crate) fn indented_table(&mut self, table: &Table) -> io::Result<()> {
        self.out.write_all(table.render("  ").as_bytes())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Whether a character does something to a terminal other than to be seen.
fn steers(c: char) -> bool {
    c.is_control() && c != '\t'
}

/// Text on one line: what a node said may hold line breaks and escape sequences.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Rows under upper-case headers.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headers: [&str; N]) -> Self {
        Self {
            rows: vec![headers.iter().map(ToString::to_string).collect()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cell = |c: &String| if c.is_empty() { "-".to_owned() } else { printable(c) };
        self.rows.push(cells.iter().map(cell).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    fn render(&self, indent: &str) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |i: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
            text.push_str(format!("{indent}{}", cells.join("   ")).trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_hold_no_control_characters() {
        let mut table = Table::new(["NODE", "REASON"]);
        table.row(["gw-é".into(), "a\x1b[31m\nb".into()]);
        table.row(["plc-1.line-2".into(), String::new()]);
        assert_eq!(
            table.render(""),
            "NODE           REASON\ngw-é           a [31m b\nplc-1.line-2   -\n"
        );
    }
}
