//! Sizes, CPU shares and durations as people write them, and their one canonical form: plain numbers.

use serde_json::Value;

/// Most CPU a workload can ask for: 1024 cores.
pub const MAX_CPU_MILLIS: u32 = 1_024_000;

/// Longest duration a manifest can name: ten years.
pub const MAX_DURATION_MS: u64 = 10 * 366 * 24 * 3_600_000;

/// Why a text or number is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidQuantity {
    #[error("expected {0}")]
    NotOne(&'static str),
    #[error("must be more than 0")]
    Zero,
    #[error("is larger than anything this field can hold")]
    TooLarge,
    #[error("is finer than {0}")]
    TooFine(&'static str),
}

pub(super) const SIZE: &str = "a size such as 16MiB, 512K or a number of bytes";
pub(super) const CPU: &str = "a CPU share such as 100m (a tenth of a core) or a number of cores";
pub(super) const DURATION: &str = "a duration such as 500ms, 5s, 10m or a number of seconds";

pub(super) const SIZE_PATTERN: &str = "^[0-9]{1,15}(\\.[0-9]{1,6})?(B|K|M|G|KiB|MiB|GiB)?$";
pub(super) const CPU_PATTERN: &str = "^([0-9]{1,7}m|[0-9]{1,4}(\\.[0-9]{1,6})?)$";
pub(super) const DURATION_PATTERN: &str = "^[0-9]{1,12}(\\.[0-9]{1,6})?(ms|s|m|h|d)$";

/// A number as digits: exact, where floating point would round.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u128,
    places: u32,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let all = format!("{whole}{fraction}");
        // 24 digits times the largest unit stays far below u128::MAX.
        if whole.is_empty() || all.len() > 24 || !all.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self {
            digits: all.parse().ok()?,
            places: u32::try_from(fraction.len()).ok()?,
        })
    }

    /// The number in units of `1 / scale`, if it is a whole number of them.
    fn scaled(self, scale: u64) -> Option<u128> {
        let product = self.digits * u128::from(scale);
        let divisor = 10_u128.pow(self.places);
        product.is_multiple_of(divisor).then(|| product / divisor)
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A JSON number as the decimal text that it prints as; `None` for negative ones and for exponents.
fn number_text(value: &Value) -> Option<String> {
    let text = value.as_number()?.to_string();
    let text = text.strip_suffix(".0").unwrap_or(&text);
    text.bytes()
        .all(|b| b.is_ascii_digit() || b == b'.')
        .then(|| text.to_owned())
}

/// Bytes. `K`, `M`, `G` are powers of 1000, `KiB`, `MiB`, `GiB` of 1024.
pub(super) fn size(value: &Value) -> Result<u64, InvalidQuantity> {
    let wrong = InvalidQuantity::NotOne(SIZE);
    let text = value
        .as_str()
        .map(str::to_owned)
        .or_else(|| number_text(value))
        .ok_or(wrong)?;
    let (number, unit) = split_unit(&text);
    let scale = match unit {
        "" | "B" => 1,
        "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong),
    };
    let bytes = Decimal::parse(number)
        .ok_or(wrong)?
        .scaled(scale)
        .ok_or(InvalidQuantity::TooFine("one byte"))?;
    // Beyond 2^53 a number does not survive JSON in every language that will read it.
    more_than_zero(bounded(bytes, 1 << 53)?)
}

/// Thousandths of a core.
pub(super) fn cpu(value: &Value) -> Result<u32, InvalidQuantity> {
    let wrong = InvalidQuantity::NotOne(CPU);
    let text = value
        .as_str()
        .map(str::to_owned)
        .or_else(|| number_text(value))
        .ok_or(wrong)?;
    let (number, unit) = split_unit(&text);
    let scale = match unit {
        "" => 1_000,
        "m" => 1,
        _ => return Err(wrong),
    };
    let millis = Decimal::parse(number)
        .ok_or(wrong)?
        .scaled(scale)
        .ok_or(InvalidQuantity::TooFine("1m"))?;
    let millis = more_than_zero(bounded(millis, u64::from(MAX_CPU_MILLIS))?)?;
    u32::try_from(millis).map_err(|_| InvalidQuantity::TooLarge)
}

/// Milliseconds. Zero is a duration; who cannot use it says so (`checks.rs`).
pub(super) fn duration(value: &Value) -> Result<u64, InvalidQuantity> {
    let wrong = InvalidQuantity::NotOne(DURATION);
    let (text, bare) = match value {
        Value::String(text) => (text.clone(), false),
        other => (number_text(other).ok_or(wrong)?, true),
    };
    let (number, unit) = split_unit(&text);
    let scale = match unit {
        "" if bare => 1_000,
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong),
    };
    let ms = Decimal::parse(number)
        .ok_or(wrong)?
        .scaled(scale)
        .ok_or(InvalidQuantity::TooFine("1ms"))?;
    bounded(ms, MAX_DURATION_MS)
}

fn bounded(amount: u128, max: u64) -> Result<u64, InvalidQuantity> {
    u64::try_from(amount)
        .ok()
        .filter(|n| *n <= max)
        .ok_or(InvalidQuantity::TooLarge)
}

fn more_than_zero(amount: u64) -> Result<u64, InvalidQuantity> {
    if amount == 0 {
        Err(InvalidQuantity::Zero)
    } else {
        Ok(amount)
    }
}

/// Thousandths as a plain JSON number: whole where they are whole, otherwise the shortest fraction.
pub(super) fn thousandths(amount: u64) -> serde_json::Number {
    if amount.is_multiple_of(1_000) {
        return (amount / 1_000).into();
    }
    // Both bounds above keep the amount below 2^53, so that the fraction prints and parses back exactly.
    serde_json::Number::from_f64(amount as f64 / 1_000.0).unwrap_or_else(|| (amount / 1_000).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes() {
        assert_eq!(size(&json!("16MiB")), Ok(16 << 20));
        assert_eq!(size(&json!("1.5KiB")), Ok(1536));
        assert_eq!(size(&json!("2M")), Ok(2_000_000));
        assert_eq!(size(&json!(4096)), Ok(4096));
        assert_eq!(size(&json!(4096.0)), Ok(4096));
        assert_eq!(size(&json!("0MiB")), Err(InvalidQuantity::Zero));
        assert_eq!(size(&json!("999999999999GiB")), Err(InvalidQuantity::TooLarge));
        assert_eq!(size(&json!("0.3B")), Err(InvalidQuantity::TooFine("one byte")));
        for bad in [
            json!("16 MiB"),
            json!("-1"),
            json!("MiB"),
            json!(-1),
            json!(true),
            json!("1e3"),
            json!(""),
        ] {
            assert_eq!(size(&bad), Err(InvalidQuantity::NotOne(SIZE)), "{bad}");
        }
    }

    #[test]
    fn cpu_and_durations() {
        assert_eq!(cpu(&json!("100m")), Ok(100));
        assert_eq!(cpu(&json!(0.1)), Ok(100));
        assert_eq!(cpu(&json!("2")), Ok(2_000));
        assert_eq!(cpu(&json!(0.0001)), Err(InvalidQuantity::TooFine("1m")));
        assert_eq!(duration(&json!("1.5s")), Ok(1_500));
        assert_eq!(duration(&json!("10m")), Ok(600_000));
        assert_eq!(duration(&json!(5)), Ok(5_000));
        assert_eq!(duration(&json!("5")), Err(InvalidQuantity::NotOne(DURATION)));
        assert_eq!(duration(&json!("99999d")), Err(InvalidQuantity::TooLarge));
    }

    #[test]
    fn canonical_numbers_parse_back() {
        for amount in [1, 100, 999, 1_000, 1_234, u64::from(MAX_CPU_MILLIS)] {
            assert_eq!(cpu(&Value::Number(thousandths(amount))).map(u64::from), Ok(amount));
        }
        for amount in [1, 1_500, MAX_DURATION_MS - 1, MAX_DURATION_MS] {
            assert_eq!(duration(&Value::Number(thousandths(amount))), Ok(amount));
        }
    }
}
