//! What the tenant is billed for. Recorded usage is part of the invocation's commit: there is no bill for work that
//! was rolled back, and no work without its bill.
//!
//! ```
//! # use chalet_sdk::{meters, testing::Host};
//! # Host::new().run(|| {
//! meters::record("payments", 1)?;
//! meters::record_with("tokens", "0.25", &[("model", "small")])?;
//! # Ok(()) }).unwrap();
//! ```

use std::fmt;

use crate::{Result, host};

/// A quantity: a decimal that is not negative and has at most 28 significant digits.
///
/// Made from unsigned and signed integers and from decimal text. It is checked by the host, not here; there is no way
/// in from floating point, because 0.1 is none of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount(String);

impl Amount {
    /// The amount as decimal text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! amount_from_integers {
    ($($integer:ty),+) => {$(
        impl From<$integer> for Amount {
            fn from(value: $integer) -> Self {
                Self(value.to_string())
            }
        }
    )+};
}
amount_from_integers!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl From<&str> for Amount {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl From<String> for Amount {
    fn from(value: String) -> Self {
        Self(value)
    }
}

/// Record usage on a meter. Fails with [`Error::Invalid`](crate::Error::Invalid) if the amount is no such decimal.
pub fn record(meter: &str, amount: impl Into<Amount>) -> Result<()> {
    record_with(meter, amount, &[])
}

/// Record usage with up to 16 dimensions, names and values by which usage can be grouped.
pub fn record_with(meter: &str, amount: impl Into<Amount>, dimensions: &[(&str, &str)]) -> Result<()> {
    host::meter_record(meter, amount.into().as_str(), dimensions)
}
