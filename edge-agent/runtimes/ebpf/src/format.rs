//! Texts made from the fields of a record: `write from {4:ipv4} unit {20:u8}`.

use std::fmt::Write;

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 1024;

/// A parsed text with fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { offset: usize, kind: Kind },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A number as the node stores it: its size in bytes.
    Native(usize),
    /// A number as networks send it.
    Big(usize),
    /// A number as the node stores it, in hex.
    Hex(usize),
    Ipv4,
    Mac,
}

/// Why a template is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Too long to be meant.
    #[error("longer than {TEMPLATE_BYTES_MAX} bytes")]
    TooLong,
    /// A brace that is neither a field's nor doubled.
    #[error("a brace without its other half: write `{{{{` or `}}}}` for a brace itself")]
    Brace,
    /// What is between braces is no field.
    #[error("`{{{field}}}` is no field: write {{OFFSET:TYPE}} with a type such as u8, u16, be32, x16, ipv4 or mac")]
    Field {
        /// What is there.
        field: String,
    },
    /// A field lies outside the bytes there are.
    #[error("`{{{field}}}` ends after byte {size}")]
    Outside {
        /// Which field.
        field: String,
        /// Bytes there are.
        size: usize,
    },
}

impl Template {
    /// Parses a text whose fields lie within `size` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, size: usize) -> Result<Template, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(TemplateError::Brace);
            }
            let (field, after) = rest.split_once('}').ok_or(TemplateError::Brace)?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(parse_field(field, size)?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Template { parts })
    }

    /// The text for a record; a field that a short record does not have is a question mark.
    #[must_use]
    pub fn render(&self, record: &[u8]) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { offset, kind } => match record.get(*offset..*offset + kind.size()) {
                    Some(bytes) => kind.render(bytes, &mut out),
                    None => out.push('?'),
                },
            }
        }
        out
    }
}

fn parse_field(field: &str, size: usize) -> Result<Part, TemplateError> {
    let wrong = || TemplateError::Field {
        field: field.to_owned(),
    };
    let (offset, kind) = field.split_once(':').ok_or_else(wrong)?;
    let offset = offset.parse::<u16>().map_err(|_| wrong())?;
    let kind = match kind {
        "u8" => Kind::Native(1),
        "u16" => Kind::Native(2),
        "u32" => Kind::Native(4),
        "u64" => Kind::Native(8),
        "be16" => Kind::Big(2),
        "be32" => Kind::Big(4),
        "be64" => Kind::Big(8),
        "x8" => Kind::Hex(1),
        "x16" => Kind::Hex(2),
        "x32" => Kind::Hex(4),
        "ipv4" => Kind::Ipv4,
        "mac" => Kind::Mac,
        _ => return Err(wrong()),
    };
    let offset = usize::from(offset);
    if offset + kind.size() > size {
        return Err(TemplateError::Outside {
            field: field.to_owned(),
            size,
        });
    }
    Ok(Part::Field { offset, kind })
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::Native(size) | Kind::Big(size) | Kind::Hex(size) => size,
            Kind::Ipv4 => 4,
            Kind::Mac => 6,
        }
    }

    fn render(self, bytes: &[u8], out: &mut String) {
        // Writing into a String cannot fail.
        let _ = match self {
            Kind::Native(_) => write!(out, "{}", native(bytes)),
            Kind::Big(_) => write!(out, "{}", bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b))),
            Kind::Hex(size) => write!(out, "{:0width$x}", native(bytes), width = size * 2),
            Kind::Ipv4 => write!(out, "{}.{}.{}.{}", bytes[0], bytes[1], bytes[2], bytes[3]),
            Kind::Mac => {
                let digits: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
                write!(out, "{}", digits.join(":"))
            }
        };
    }
}

/// A number of 1 to 8 bytes as the node stores it; other lengths are read as far as they go.
#[must_use]
pub fn native(bytes: &[u8]) -> u64 {
    let used = &bytes[..bytes.len().min(8)];
    let fold = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
    if cfg!(target_endian = "little") {
        used.iter().rev().fold(0, fold)
    } else {
        used.iter().fold(0, fold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_rendered() {
        let mut record = vec![1, 0, 10, 0, 0, 9, 0x02, 0x42, 0xac, 0, 0, 1];
        record.extend_from_slice(&0x8892u16.to_ne_bytes());
        let text = "{{k}} {0:u8} from {2:ipv4} {6:mac} {12:x16} {12:u16} {4:be16}.";
        let template = Template::parse(text, record.len()).unwrap();
        assert_eq!(
            template.render(&record),
            "{k} 1 from 10.0.0.9 02:42:ac:00:00:01 8892 34962 9."
        );
        assert_eq!(template.render(&record[..4]), "{k} 1 from ? ? ? ? ?.");
        assert_eq!(Template::parse("", 0).unwrap().render(&[]), "");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("{0:u8", TemplateError::Brace),
            ("a } b", TemplateError::Brace),
            ("{0:u7}", TemplateError::Field { field: "0:u7".into() }),
            ("{u8}", TemplateError::Field { field: "u8".into() }),
            ("{-1:u8}", TemplateError::Field { field: "-1:u8".into() }),
            (
                "{5:ipv4}",
                TemplateError::Outside {
                    field: "5:ipv4".into(),
                    size: 8,
                },
            ),
        ] {
            assert_eq!(Template::parse(text, 8).unwrap_err(), expected, "{text}");
        }
        assert_eq!(
            Template::parse(&"x".repeat(TEMPLATE_BYTES_MAX + 1), 8).unwrap_err(),
            TemplateError::TooLong
        );
    }
}
