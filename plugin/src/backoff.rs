//! How long to wait before a process that ended by itself is started again.

use std::time::Duration;

/// A process that was well for this long has earned a fresh start: its earlier failures no longer count.
pub(crate) const WELL_AFTER: Duration = Duration::from_secs(60);

/// The wait before the next start, after `failures` ends in a row: half a second, doubling up to 30.
pub(crate) fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
    (FIRST * 2u32.pow(doublings)).min(LONGEST)
}

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// 0.5 s doubled six times is past [`LONGEST`].
const MAX_DOUBLINGS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_half_a_minute() {
        let seconds: Vec<_> = (1..=9).map(|n| delay(n).as_secs_f64()).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!(delay(u32::MAX), LONGEST);
    }
}
