//! The wall's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of day, since 1970, as credentials and links have it.
pub fn now_unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
