//! A value as server-sent events: the whole of it at once, then again on every change.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::watch;

/// Serves `values` as server-sent events with JSON data. A slow reader misses values in between, never the last.
pub fn sse<T>(values: watch::Receiver<T>) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    T: Serialize + Clone + Send + Sync + 'static,
{
    let stream = stream::unfold((values, true), async |(mut values, first)| {
        if !first {
            values.changed().await.ok()?;
        }
        let value = values.borrow_and_update().clone();
        // A value that can't be JSON is a bug of ours; the stream ends rather than sends half.
        let event = Event::default().json_data(value).ok()?;
        Some((Ok(event), (values, false)))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10)))
}

/// Takes server-sent events apart: bytes go in as they come, the data of whole events comes out.
#[derive(Debug, Default)]
pub struct SseReader {
    pending: Vec<u8>,
}

impl SseReader {
    /// The longest event taken, in bytes.
    pub const MAX_EVENT_BYTES: usize = 4 << 20;

    /// Takes `bytes`, and gives the data of each event that they complete.
    ///
    /// # Errors
    /// Where an event is longer than [`Self::MAX_EVENT_BYTES`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, EventTooLong> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            events.extend(data_of(&String::from_utf8_lossy(&event)));
        }
        if self.pending.len() > Self::MAX_EVENT_BYTES {
            return Err(EventTooLong);
        }
        Ok(events)
    }
}

/// An event grew past [`SseReader::MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTooLong;

impl std::fmt::Display for EventTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an event is longer than {} bytes", SseReader::MAX_EVENT_BYTES)
    }
}

impl std::error::Error for EventTooLong {}

fn data_of(event: &str) -> Option<String> {
    let lines: Vec<_> = event
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_arrive() {
        let text = b": ping\n\ndata: {\"a\":1}\n\ndata: x\ndata: y\n\ndata: half";
        for size in 1..text.len() {
            let mut reader = SseReader::default();
            let events: Vec<_> = text
                .chunks(size)
                .flat_map(|part| reader.push(part).unwrap())
                .collect();
            assert_eq!(events, ["{\"a\":1}", "x\ny"]);
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut reader = SseReader::default();
        let part = vec![b'x'; SseReader::MAX_EVENT_BYTES];
        assert_eq!(reader.push(&part), Ok(vec![]));
        assert_eq!(reader.push(b"x"), Err(EventTooLong));
    }
}
