//! Kubernetes' quantities, as far as amounts of our resources need them.

/// A quantity that is a whole number: digits, and perhaps a suffix or an exponent, since API servers write 2000
/// as `2k`. See <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
pub fn whole_number(text: &str) -> Option<u32> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        exponent => 10u32.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_numbers() {
        let good = [
            ("0", 0),
            ("13", 13),
            ("1k", 1000),
            ("2Ki", 2048),
            ("1e3", 1000),
            ("4294967295", u32::MAX),
        ];
        for (text, number) in good {
            assert_eq!(whole_number(text), Some(number), "{text}");
        }
        for text in [
            "",
            "k",
            "-1",
            "+1",
            "1.5",
            "500m",
            "13 ",
            "1e",
            "1e-3",
            "4294967296",
            "5000M",
            "1x",
            "1e99",
        ] {
            assert_eq!(whole_number(text), None, "{text}");
        }
    }
}
