//! Lengths of time on the command line.

use std::time::Duration;

/// Reads a number with s, m or h, such as `90s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("it takes a whole number and a unit: 90s, 15m or 6h".to_owned()),
    };
    let number: u32 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a whole number"))?;
    if number == 0 {
        return Err("it must be more than 0".to_owned());
    }
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("6h", 21_600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "6", "h", "0s", "1d", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
