//! The whole site under a path. The page's own URLs are relative, so it works wherever it is.

use axum::Router;
use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use tower::ServiceExt as _;

use crate::problem::Refusal;

/// `site`, with all its paths behind `prefix`.
pub fn under(prefix: &str, site: Router) -> Router {
    let prefix = prefix.to_owned();
    Router::new().fallback(async move |request: Request| answer(&prefix, site, request).await)
}

async fn answer(prefix: &str, site: Router, mut request: Request) -> Response {
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let inner = match strip(prefix, path) {
        Stripped::Inside(path) => path.to_owned(),
        Stripped::Edge(query) if upgrades => format!("/{query}"),
        // The page's relative URLs would lead out of it.
        Stripped::Edge(query) => {
            let location = [(header::LOCATION, format!("{prefix}/{query}"))];
            return (StatusCode::PERMANENT_REDIRECT, location).into_response();
        }
        Stripped::Outside => {
            let why = format!("There is nothing here. The site is at {prefix}/.");
            return Refusal::new(StatusCode::NOT_FOUND, why).into_response();
        }
    };
    match inner.parse::<Uri>() {
        Ok(uri) => {
            *request.uri_mut() = uri;
            site.oneshot(request).await.into_response()
        }
        Err(_) => Refusal::bad_request("The path can't be read.").into_response(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stripped<'a> {
    /// The path within, which begins with a slash.
    Inside(&'a str),
    /// The prefix itself, without a slash; and the query with its question mark, if there is one.
    Edge(&'a str),
    Outside,
}

fn strip<'a>(prefix: &str, path: &'a str) -> Stripped<'a> {
    match path.strip_prefix(prefix) {
        Some(rest) if rest.starts_with('/') => Stripped::Inside(rest),
        Some(rest) if rest.is_empty() || rest.starts_with('?') => Stripped::Edge(rest),
        _ => Stripped::Outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_inside_at_the_edge_or_outside() {
        let strip = |path| strip("/play", path);
        assert_eq!(strip("/play/"), Stripped::Inside("/"));
        assert_eq!(strip("/play/a?b=/c"), Stripped::Inside("/a?b=/c"));
        assert_eq!(strip("/play?join=x"), Stripped::Edge("?join=x"));
        assert_eq!(strip("/play"), Stripped::Edge(""));
        for outside in ["/", "/player/", "/playground", "/x/play/", "*"] {
            assert_eq!(strip(outside), Stripped::Outside, "{outside}");
        }
    }
}
