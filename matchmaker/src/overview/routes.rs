//! What is asked over HTTP, and answered.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};

use super::listener::Listener;
use crate::auth::rights::Action;
use crate::caller::Caller;
use crate::front::Front;
use crate::problem::{Reason, Refusal};
use crate::serve::HangUp;

/// All of them; programs may like them, too.
pub fn routes() -> Vec<(&'static str, MethodRouter<Front>)> {
    vec![("/overview.json", get(once)), ("/overview/events", get(events))]
}

async fn once(State(front): State<Front>, caller: Caller) -> Result<Response, Refusal> {
    caller.must(Action::SeeOverview)?;
    let text = front.overviews.text().await.ok_or_else(Refusal::ending)?;
    let json = (header::CONTENT_TYPE, "application/json");
    Ok(([json, NO_STORE], text.to_string()).into_response())
}

async fn events(
    State(front): State<Front>,
    caller: Caller,
    Extension(HangUp(hang_up)): Extension<HangUp>,
) -> Result<Response, Refusal> {
    caller.must(Action::SeeOverview)?;
    let overviews = front.overviews;
    let seat = Arc::clone(&overviews.seats).try_acquire_owned().map_err(|_| {
        let why = "As many look at the overview already as may. Try again in a moment.";
        Refusal::unavailable(why, RETRY_AFTER).because(Reason::Listeners)
    })?;
    let changes = overviews.latest.subscribe();
    let first = overviews.text().await.ok_or_else(Refusal::ending)?;
    let listener = Listener {
        first,
        changes,
        hang_up,
    };
    let (body, work) = listener.serve();
    let stop = overviews.stop;
    tokio::spawn(async move {
        stop.run_until_cancelled(work).await;
        drop(seat);
    });
    Ok(([NO_STORE, UNBUFFERED], body).into_response())
}

const NO_STORE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
/// For nginx before us, which would keep events until there are many.
const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");
/// In seconds.
const RETRY_AFTER: u64 = 5;
