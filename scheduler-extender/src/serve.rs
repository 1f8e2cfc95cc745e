//! `serve`: what a kube-scheduler asks over HTTP.
//!
//! ```text
//!   kube-scheduler ──POST /filter /prioritize /bind /preempt──► wire ──► owner: Index
//!   watches        ──pods, GpuNodes, PodDisruptionBudgets─────────────►    │
//!   binder         ◄──the GPU that was chosen──────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt as _;
use axum::{Json, serve as serve_http};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use penstock_shell::gpu_node::GpuNode;
use penstock_shell::ops;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::ServeArgs;
use crate::binder::Binder;
use crate::index::Index;
use crate::metrics::{Metrics, Verb};
use crate::objects::{PodObject, Unreadable};
use crate::owner::{self, Ending, Owner};
use crate::watches::{self, News};
use crate::wire::{
    self, BadBody, ExtenderArgs, ExtenderBindingArgs, ExtenderBindingResult, ExtenderFilterResult,
    ExtenderPreemptionArgs, ExtenderPreemptionResult, HostPriority,
};

/// Serves until `stop` is cancelled.
///
/// # Errors
/// Where it can't begin; or where a part of it ends, which none should.
pub(crate) async fn serve(args: &ServeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client().await?;
    let scheduler = listen(args.listen)
        .await
        .context("listening for the scheduler (--listen)")?;
    let operators = listen(args.metrics_listen)
        .await
        .context("listening for operators (--metrics-listen)")?;
    let metrics = Arc::new(Metrics::new().context("registering the metrics")?);
    let news = Arc::new(News::new(Instant::now()));
    let (owner, owning) = owner::own(Index::new(args.settings()));
    let under_way = TaskTracker::new();
    let binder = Binder {
        client: client.clone(),
        owner: owner.clone(),
        metrics: metrics.clone(),
        under_way: under_way.clone(),
    };
    let extender = Extender {
        owner: owner.clone(),
        news: news.clone(),
        metrics: metrics.clone(),
        binder,
    };

    // Any of them ending ends the program: a part that is gone must not go unnoticed.
    let mut parts = JoinSet::new();
    parts.spawn(async move {
        owning.await;
        Ok(())
    });
    parts.spawn(ending(watches::watch::<PodObject>(
        client.clone(),
        owner.clone(),
        news.clone(),
    )));
    parts.spawn(ending(watches::watch::<GpuNode>(
        client.clone(),
        owner.clone(),
        news.clone(),
    )));
    parts.spawn(ending(watches::watch::<PodDisruptionBudget>(
        client,
        owner.clone(),
        news.clone(),
    )));
    parts.spawn(ending(show(owner, metrics.clone(), news.clone())));
    parts.spawn(http(scheduler, router(extender), stop.clone()));
    parts.spawn(http(
        operators,
        ops::router(metrics.registry.clone(), ready(news)),
        stop.clone(),
    ));
    tracing::info!(scheduler = %args.listen, operators = %args.metrics_listen, "serving");

    let ended = stop.run_until_cancelled(parts.join_next()).await;
    if let Some(ended) = ended.filter(|_| !stop.is_cancelled()) {
        let outcome = ended
            .context("running the extender")?
            .context("running the extender")?;
        return outcome.and(Err(anyhow!("a part of the extender ended")));
    }
    under_way.close();
    // What is not through by then is found out by the watches of the next process.
    let _ = tokio::time::timeout(GRACE, under_way.wait()).await;
    Ok(())
}

async fn client() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await.context(
        "finding the API server: neither KUBECONFIG (or ~/.kube/config) nor a pod's service account names one",
    )?;
    // The client would send a Binding again without saying so, and then take what the first one did for a conflict.
    // Watches have a back-off of their own.
    config.default_retry = false;
    Client::try_from(config).context("preparing to talk to the API server")
}

async fn listen(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("binding {address}"))
}

async fn ending(part: impl Future<Output = Ending>) -> anyhow::Result<()> {
    Err(part.await.into())
}

async fn http(listener: TcpListener, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
    // An answer in two segments must not wait for the first one's acknowledgement.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let serving = serve_http(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    serving.await.context("serving HTTP")
}

fn ready(news: Arc<News>) -> ops::Ready {
    Arc::new(move || match &*news.missing() {
        [] => Ok(()),
        missing => Err(format!(
            "the API server has not told of {} yet",
            missing.join(", ")
        )),
    })
}

/// Keeps the metrics up to date that no request changes.
async fn show(owner: Owner, metrics: Arc<Metrics>, news: Arc<News>) -> Ending {
    loop {
        match owner.ask(|index| index.usage()).await {
            Ok(usage) => metrics.show(&usage),
            Err(ending) => return ending,
        }
        metrics.show_age(&news, Instant::now());
        tokio::time::sleep(SHOWN_EVERY).await;
    }
}

#[derive(Clone)]
struct Extender {
    owner: Owner,
    news: Arc<News>,
    metrics: Arc<Metrics>,
    binder: Binder,
}

fn router(extender: Extender) -> Router {
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .route("/bind", post(bind))
        .route("/preempt", post(preempt))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(extender)
}

type Body = Result<Bytes, BytesRejection>;
type Answer<T> = Result<Json<T>, Problem>;

async fn filter(State(extender): State<Extender>, body: Body) -> Answer<ExtenderFilterResult> {
    let _timer = extender.metrics.time(Verb::Filter);
    let mut args: ExtenderArgs = extender.read(Verb::Filter, body)?;
    let names = extender.check(Verb::Filter, args.names())?;
    let Some(pod) = extender.check(Verb::Filter, args.pod.read())? else {
        return Ok(Json(ExtenderFilterResult::all(names)));
    };
    let (verdicts, names) = extender
        .ask(move |index| (index.filter(&pod, &names), names))
        .await?;
    extender.metrics.filter(&verdicts);
    Ok(Json(ExtenderFilterResult::of(names, &verdicts)))
}

async fn prioritize(State(extender): State<Extender>, body: Body) -> Answer<Vec<HostPriority>> {
    let _timer = extender.metrics.time(Verb::Prioritize);
    let mut args: ExtenderArgs = extender.read(Verb::Prioritize, body)?;
    let names = extender.check(Verb::Prioritize, args.names())?;
    let Some(pod) = extender.check(Verb::Prioritize, args.pod.read())? else {
        let scores = vec![0; names.len()];
        return Ok(Json(wire::priorities(names, scores)));
    };
    let (scores, names) = extender
        .ask(move |index| (index.prioritize(&pod, &names), names))
        .await?;
    Ok(Json(wire::priorities(names, scores)))
}

async fn preempt(State(extender): State<Extender>, body: Body) -> Answer<ExtenderPreemptionResult> {
    let _timer = extender.metrics.time(Verb::Preempt);
    let mut args: ExtenderPreemptionArgs = extender.read(Verb::Preempt, body)?;
    let proposed = extender.check(Verb::Preempt, args.proposed())?;
    let Some(pod) = extender.check(Verb::Preempt, args.pod.read())? else {
        return Ok(Json(proposed.into()));
    };
    let count = proposed.len();
    let victims = extender.ask(move |index| index.preempt(&pod, &proposed)).await?;
    extender.metrics.preempt(count, victims.len());
    Ok(Json(victims.into()))
}

/// Why a pod is not bound comes back as the protocol has it: with 200, in the answer's error.
async fn bind(State(extender): State<Extender>, body: Body) -> Answer<ExtenderBindingResult> {
    let _timer = extender.metrics.time(Verb::Bind);
    let args: ExtenderBindingArgs = extender.read(Verb::Bind, body)?;
    extender.must_be_ready()?;
    let bound = extender.binder.bind(args).await;
    let error = bound.err().map(|why| why.to_string()).unwrap_or_default();
    Ok(Json(ExtenderBindingResult { error }))
}

impl Extender {
    fn read<T: serde::de::DeserializeOwned>(&self, verb: Verb, body: Body) -> Result<T, Problem> {
        let body = self.check(verb, body)?;
        self.check(verb, wire::read(&body))
    }

    fn check<T, E: Into<Problem>>(&self, verb: Verb, read: Result<T, E>) -> Result<T, Problem> {
        read.map_err(|error| {
            self.metrics.bad_request(verb);
            error.into()
        })
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Index) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        self.must_be_ready()?;
        Ok(self.owner.ask(question).await?)
    }

    /// Half an index would refuse what fits, and take what is full.
    fn must_be_ready(&self) -> Result<(), Problem> {
        let missing = self.news.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!(
            "the API server has not told of {} yet: ask again",
            missing.join(", ")
        );
        Err(Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            why,
        })
    }
}

/// An answer that is none of the protocol: a status, and why. The scheduler logs it and tries the pod again.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    why: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, format!("{}\n", self.why)).into_response()
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        let status = rejection.status();
        let why = match status {
            StatusCode::PAYLOAD_TOO_LARGE => format!("the body is longer than {LONGEST_BODY} bytes"),
            _ => format!("reading the body: {}", rejection.body_text()),
        };
        Self { status, why }
    }
}

impl From<BadBody> for Problem {
    fn from(bad: BadBody) -> Self {
        let status = match bad {
            BadBody::NoJson(_) => StatusCode::BAD_REQUEST,
            BadBody::WrongShape(_) | BadBody::NoNames(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self {
            status,
            why: bad.to_string(),
        }
    }
}

impl From<Unreadable> for Problem {
    fn from(unreadable: Unreadable) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            why: unreadable.to_string(),
        }
    }
}

impl From<Ending> for Problem {
    fn from(ending: Ending) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            why: ending.to_string(),
        }
    }
}

/// Over what a scheduler of a cluster of 5,000 nodes sends: a pod of 1.5 MiB (etcd's limit) and names of 253 characters,
/// or 110 victims on each of the 500 nodes that it proposes.
const LONGEST_BODY: usize = 8 << 20;
/// Summing up the largest clusters takes a few milliseconds.
const SHOWN_EVERY: Duration = Duration::from_secs(5);
/// So long bindings under way may take when the program is told to end.
const GRACE: Duration = Duration::from_secs(5);
