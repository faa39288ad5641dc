//! Exact sums of decimals: nothing is rounded, however many there are and however different in size.

use std::fmt;

use rust_decimal::Decimal;

/// Parts of one: the finest step that a [`Decimal`] has.
const PARTS: i128 = 10i128.pow(28);

/// A sum. Whole units and parts are kept apart, since a decimal of 28 places and one of 28 digits do not
/// fit into one together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    whole: i128,
    parts: i128,
}

impl Sum {
    /// Add a value. A sum of 2 * 10^9 of the largest values still fits.
    pub(super) fn add(&mut self, value: Decimal) {
        let unit = 10i128.pow(value.scale());
        let mantissa = value.mantissa();
        self.parts += (mantissa % unit) * (PARTS / unit);
        self.whole = self.whole.saturating_add(mantissa / unit + self.parts / PARTS);
        self.parts %= PARTS;
    }

    /// Add whole units.
    pub(super) fn add_units(&mut self, units: u64) {
        self.whole = self.whole.saturating_add(i128::from(units));
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both parts may have either sign; a decimal has one.
        let (mut whole, mut parts) = (self.whole, self.parts);
        if whole > 0 && parts < 0 {
            (whole, parts) = (whole - 1, parts + PARTS);
        } else if whole < 0 && parts > 0 {
            (whole, parts) = (whole + 1, parts - PARTS);
        }
        if whole < 0 || parts < 0 {
            f.write_str("-")?;
        }
        write!(f, "{}", whole.unsigned_abs())?;
        if parts != 0 {
            let digits = format!("{:028}", parts.unsigned_abs());
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[&str]) -> String {
        let mut sum = Sum::default();
        for value in values {
            sum.add(Decimal::from_str_exact(value).expect("a decimal"));
        }
        sum.to_string()
    }

    #[test]
    fn nothing_is_rounded() {
        assert_eq!(sum(&[]), "0");
        assert_eq!(sum(&["0.1"; 10]), "1");
        assert_eq!(sum(&["0.1", "0.2"]), "0.3");
        assert_eq!(sum(&["1.10", "2.20"]), "3.3");
        assert_eq!(
            sum(&["9999999999999999999999999999", "0.0000000000000000000000000001"]),
            "9999999999999999999999999999.0000000000000000000000000001"
        );
        assert_eq!(sum(&["79228162514264337593543950335"; 1_000]), "79228162514264337593543950335000");
        assert_eq!(sum(&["5", "-0.25"]), "4.75");
        assert_eq!(sum(&["-5", "0.25"]), "-4.75");
        assert_eq!(sum(&["0.5", "-0.75"]), "-0.25");
        assert_eq!(sum(&["1", "-1"]), "0");
        assert_eq!(sum(&["-0.5", "-0.5", "-0.5"]), "-1.5");
    }
}
