//! One who listens to the overview: its own task, which waits for it no longer than [`SLOW`].

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::Sse;
use axum::response::sse::Event;
use futures_util::{Stream, stream};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{EVERY, HEARTBEAT, SLOW};

/// What a listener is told, and how it is got rid of.
pub(super) struct Listener {
    /// What it is told at once.
    pub(super) first: Arc<str>,
    /// What it is told then.
    pub(super) changes: watch::Receiver<Arc<str>>,
    /// Ends its connection.
    pub(super) hang_up: CancellationToken,
}

/// What there is to say.
enum Said {
    State(Arc<str>),
    /// Nothing new: a comment would do for the connection, but the page would not see it.
    Heartbeat,
}

impl Listener {
    /// What is sent, and the work to be done meanwhile. It ends when the listener goes, or is too slow.
    pub(super) fn serve(
        self,
    ) -> (
        Sse<impl Stream<Item = Result<Event, Infallible>>>,
        impl Future<Output = ()>,
    ) {
        // One that waits, so that the newest is never far behind what is being sent.
        let (events, outbox) = mpsc::channel::<Said>(1);
        let body = stream::unfold(outbox, async |mut outbox| {
            let event = match outbox.recv().await? {
                Said::State(text) => Event::default().data(&*text),
                Said::Heartbeat => Event::default().event("heartbeat").data("{}"),
            };
            Some((Ok(event), outbox))
        });
        (Sse::new(body), self.tell(events))
    }

    async fn tell(mut self, events: mpsc::Sender<Said>) {
        let mut told = Arc::clone(&self.first);
        let mut next = Said::State(self.first);
        loop {
            match events.send_timeout(next, SLOW).await {
                Ok(()) => {}
                Err(SendTimeoutError::Closed(_)) => return,
                Err(SendTimeoutError::Timeout(_)) => {
                    tracing::info!("someone takes the overview too slowly, and is dropped");
                    return self.hang_up.cancel();
                }
            }
            let heartbeat = Instant::now() + HEARTBEAT;
            tokio::time::sleep(EVERY).await;
            next = loop {
                tokio::select! {
                    changed = self.changes.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(heartbeat) => break Said::Heartbeat,
                    () = events.closed() => return,
                }
                let latest = Arc::clone(&self.changes.borrow_and_update());
                if latest != told {
                    told = Arc::clone(&latest);
                    break Said::State(latest);
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::to_bytes;
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_come_at_most_twice_a_second_and_a_heartbeat_where_there_are_none() {
        let (values, listener) = listener();
        let (body, work) = listener.serve();
        let work = tokio::spawn(work);
        let mut body = body.into_response().into_body();
        let begun = Instant::now();
        let mut next = async || {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let text = String::from_utf8(frame.to_vec()).unwrap();
            (begun.elapsed().as_millis(), text.trim().to_owned())
        };
        assert_eq!(next().await, (0, "data: 0".to_owned()));
        // Of many at a time only the last is told; what is as it was is not.
        for value in ["1", "2", "3"] {
            values.send_replace(Arc::from(value));
        }
        let (at, text) = next().await;
        assert!((500..510).contains(&at), "{at}");
        assert_eq!(text, "data: 3");
        values.send_replace(Arc::from("3"));
        let (at, text) = next().await;
        assert!((10_400..10_600).contains(&at), "{at}");
        assert_eq!(text, "event: heartbeat\ndata: {}");
        values.send_replace(Arc::from("4"));
        assert_eq!(next().await.1, "data: 4");
        drop(values);
        work.await.unwrap();
        assert!(to_bytes(body, 9).await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_nothing_is_dropped() {
        let (values, listener) = listener();
        let hang_up = listener.hang_up.clone();
        let (body, work) = listener.serve();
        let _unread = body.into_response().into_body();
        let work = tokio::spawn(work);
        values.send_replace(Arc::from("1"));
        tokio::time::sleep(SLOW).await;
        assert!(!hang_up.is_cancelled(), "it has some time");
        tokio::time::timeout(Duration::from_secs(15), hang_up.cancelled())
            .await
            .unwrap();
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_goes_is_let_go() {
        let (_values, listener) = listener();
        let (body, work) = listener.serve();
        let work = tokio::spawn(work);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(body);
        tokio::time::timeout(Duration::from_secs(1), work)
            .await
            .unwrap()
            .unwrap();
    }

    fn listener() -> (watch::Sender<Arc<str>>, Listener) {
        let values = watch::Sender::new(Arc::from("0"));
        let listener = Listener {
            first: Arc::from("0"),
            changes: values.subscribe(),
            hang_up: CancellationToken::new(),
        };
        (values, listener)
    }
}
