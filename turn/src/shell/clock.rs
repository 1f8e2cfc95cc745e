//! The only place that reads the clocks.

use std::time::{Instant, SystemTime};

use crate::core::Now;

/// Both clocks, now.
#[allow(clippy::disallowed_methods, reason = "the one place that reads them")]
pub(super) fn read() -> Now {
    Now {
        instant: Instant::now(),
        // A clock before 1970 counts as 1970: every time-limited credential is then good, and none is refused early.
        unix: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    }
}
