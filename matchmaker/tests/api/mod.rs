//! The API of the real program. Whatever it answers here is held against the document that it serves.

mod overview;

use std::time::Duration;

use penstock_core::wire::signalling::MAX_MESSAGE_BYTES;
use serde_json::{Value, json};

use crate::support::{Answer, Matchmaker, Player, StandIn};
use crate::{TURN, eventually};

#[tokio::test]
async fn a_session_is_made_seen_watched_and_ended() {
    let (chess, go) = (StandIn::start("c").await, StandIn::start("g").await);
    chess.streams("chess");
    go.streams("go");
    let door = Matchmaker::start(&[&chess, &go], &["--join-link-ttl", "1m"]).await;
    let api = Api::of(&door).await;
    assert_eq!(api.ok("GET", "/sessions", "", 200).await, json!({"sessions": []}));

    let made = api
        .ask(
            "POST",
            "/sessions",
            r#"{"application": "chess", "stream": "720p30"}"#,
        )
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let link = made.json()["joinUrl"].as_str().unwrap().to_owned();
    assert!(link.starts_with("http://127.0.0.1/?join="), "{link}");
    assert_eq!(made.header("location"), Some(&*link));
    // Promised is not free: there is no second one, though nobody has come yet.
    for full in [
        r#"{"application": "chess"}"#,
        r#"{"stream": "1080p30"}"#,
        r#"{"streamerId": "x"}"#,
    ] {
        let no = api.ask("POST", "/sessions", full).await;
        assert_eq!(
            (no.status, no.header("retry-after")),
            (503, Some("5")),
            "{full}: {no:?}"
        );
    }
    assert_eq!(api.ask("POST", "/sessions", "{}").await.status, 201);

    let mut ann = door.player(&format!("/signalling{}", query(&link))).await;
    plays(&mut ann).await;
    let matched = ann.last_notice("matched").clone();
    assert_eq!(matched["streamerId"], "c");
    let id = matched["sessionId"].as_str().unwrap();
    let path = format!("/sessions/{id}");
    // The streamer says so a moment after its yes.
    eventually(async || api.ask("GET", &path, "").await.status == 200).await;
    let shown = api.ok("GET", &path, "", 200).await;
    assert_eq!(
        shown,
        json!({
            "id": id, "streamerId": "c", "application": "chess", "stream": "1280x720@30", "encoderUnits": 3,
            "players": 1, "viewers": 0, "draining": false,
        })
    );
    assert_eq!(
        api.ok("GET", "/sessions", "", 200).await,
        json!({"sessions": [shown]})
    );

    let watch = api.ok("POST", &format!("{path}/links"), "", 201).await;
    let watch = query(watch["joinUrl"].as_str().unwrap()).to_owned();
    let mut vic = door.player(&format!("/signalling{watch}")).await;
    plays(&mut vic).await;
    assert_eq!(
        chess
            .heard(3)
            .await
            .iter()
            .filter(|said| said["role"] == "viewer")
            .count(),
        1
    );

    let ended = api.ask("DELETE", &path, "").await;
    assert_eq!((ended.status, &*ended.body), (204, ""));
    let reason = "an operator ended the session";
    ann.notice(json!({"type": "matchmaker", "status": "ended", "reason": reason, "kind": "stopped"}))
        .await;
    for method in ["GET", "DELETE"] {
        eventually(async || api.ask(method, &path, "").await.status == 404).await;
    }
}

#[tokio::test]
async fn a_session_of_another_matchmaker_is_seen_and_ended_too() {
    let streamer = StandIn::start("demo").await;
    let first = Matchmaker::start(&[&streamer], &[]).await;
    let second = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = first.playing().await;
    let id = ann.last_notice("matched")["sessionId"]
        .as_str()
        .unwrap()
        .to_owned();
    let api = Api::of(&second).await;
    eventually(async || api.ask("GET", "/sessions", "").await.body.contains(&id)).await;
    assert_eq!(
        api.ask("DELETE", &format!("/sessions/{id}"), "").await.status,
        204
    );
    assert_eq!(ann.closed().await, Some(1011));
}

#[tokio::test]
async fn a_link_leads_to_what_it_says_and_a_url_can_ask_for_more() {
    let (chess, go) = (StandIn::start("c").await, StandIn::start("g").await);
    chess.streams("chess");
    go.streams("go");
    let door = Matchmaker::start(&[&chess, &go], &[]).await;
    for (path, streamer) in [
        ("/signalling?application=go", "g"),
        ("/signalling?id=c", "c"),
        ("/signalling?application=go&id=g&stream=1280x720@30", "g"),
    ] {
        let mut ann = door.player(path).await;
        plays(&mut ann).await;
        assert_eq!(ann.last_notice("matched")["streamerId"], streamer, "{path}");
        ann.leave().await;
        eventually(async || door.status().await.to_string().matches("free").count() == 2).await;
    }
    // Who waits for what is not there holds up nobody.
    let mut bob = door.player("/signalling?application=ludo").await;
    bob.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
    let mut eve = door.player("/signalling").await;
    plays(&mut eve).await;
    for bad in [
        "application=%00",
        "stream=big",
        "id=a/b",
        "watch=1&watch=2",
        "join=1&join=2",
    ] {
        let refused = Player::try_connect(door.address(), &format!("/signalling?{bad}"), &[]).await;
        assert_eq!(refused.err(), Some(400), "{bad}");
    }
}

#[tokio::test]
async fn ice_servers_come_with_credentials_that_expire() {
    let door = Matchmaker::start(&[], &TURN).await;
    let api = Api::of(&door).await;
    let answer = api.ask("GET", "/ice-servers", "").await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let servers = answer.json();
    let server = &servers["iceServers"][0];
    assert_eq!(server["urls"], json!([TURN[1]]));
    let username = server["username"].as_str().unwrap();
    let password = penstock_core::turn_rest::password(b"north", username);
    assert_eq!(server["credential"], json!(password));
    let expiry = penstock_core::turn_rest::parse(username).unwrap().expiry_unix_s;
    assert_eq!(servers["expiresAt"], json!(expiry));
    // A TURN server counts by this part.
    let who = |answer: &Value| {
        let name = answer["iceServers"][0]["username"].as_str().unwrap();
        penstock_core::turn_rest::parse(name).unwrap().who.to_owned()
    };
    let again = api.ask("GET", "/ice-servers", "").await.json();
    assert_eq!(who(&again), who(&servers), "one user has one quota");
    let without = Matchmaker::start(&[], &[]).await;
    let servers = Api::of(&without).await.ok("GET", "/ice-servers", "", 200).await;
    assert_eq!(servers, json!({"iceServers": []}));
}

#[tokio::test]
async fn what_is_wrong_is_said_in_json() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let api = Api::of(&door).await;
    for (method, path, body, status) in [
        ("POST", "/sessions", "", 400),
        ("POST", "/sessions", "{", 400),
        ("POST", "/sessions", "[]", 422),
        ("POST", "/sessions", r#"{"application": 7}"#, 422),
        ("POST", "/sessions", r#"{"aplication": "chess"}"#, 422),
        ("POST", "/sessions", r#"{"application": "a b"}"#, 400),
        ("POST", "/sessions", r#"{"stream": "big"}"#, 400),
        (
            "POST",
            "/sessions",
            &*format!("{{\"application\": \"{}\"}}", "x".repeat(MAX_MESSAGE_BYTES)),
            413,
        ),
        ("GET", "/sessions/none", "", 404),
        ("GET", "/sessions/a%20b", "", 400),
        ("GET", "/sessions/%FF", "", 400),
        ("DELETE", "/sessions/none", "", 404),
        ("POST", "/sessions/none/links", "", 404),
        ("PUT", "/sessions", "", 405),
        ("GET", "/login", "", 405),
        ("GET", "/sessions/a/b/c", "", 404),
        ("POST", "/nothing", "", 404),
        ("GET", "/signalling", "", 426),
        ("GET", "/signalling?join=forged", "", 403),
        ("GET", "/sessions?join=forged", "", 403),
    ] {
        let answer = api.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body:.60}: {answer:?}");
        assert!(
            answer.json()["error"]
                .as_str()
                .is_some_and(|error| error.len() > 10),
            "{answer:?}"
        );
    }
    let plain = [("content-type", "text/plain")];
    let answer = door.ask("POST", "/sessions", &plain, "{}").await;
    assert_eq!(answer.status, 415, "{answer:?}");
    api.check("POST", "/sessions", &answer);
}

#[tokio::test]
async fn the_document_has_every_method_and_no_other() {
    let door = Matchmaker::start(&[], &[]).await;
    let api = Api::of(&door).await;
    assert!(api.document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(api.document["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, methods) in api.document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            // Its answer has no end.
            if (method, path.as_str()) == ("get", "/overview/events") {
                assert!(methods.get(method).is_some());
                continue;
            }
            let answer = api
                .ask(&method.to_uppercase(), &path.replace("{id}", "none"), "")
                .await;
            let documented = methods.get(method).is_some();
            assert_eq!(documented, answer.status != 405, "{method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_streamer_that_does_not_answer_is_said_to() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let ann = door.playing().await;
    let id = ann.last_notice("matched")["sessionId"].as_str().unwrap();
    let api = Api::of(&door).await;
    streamer.refuse_to_end();
    let answer = api.ask("DELETE", &format!("/sessions/{id}"), "").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(!answer.body.contains("127.0.0.1"), "no address: {answer:?}");
}

/// The API, each of whose answers is held against its own document.
struct Api<'a> {
    door: &'a Matchmaker,
    document: Value,
}

impl<'a> Api<'a> {
    async fn of(door: &'a Matchmaker) -> Self {
        let document = door.ask("GET", "/openapi.json", &[], "").await.json();
        Self { door, document }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let json = [("content-type", "application/json")];
        let answer = self.door.ask(method, path, &json, body).await;
        self.check(method, path, &answer);
        answer
    }

    async fn ok(&self, method: &str, path: &str, body: &str, status: u16) -> Value {
        let answer = self.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        answer.json()
    }

    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let Some(operation) = self.operation(method, path) else {
            assert!(
                matches!(answer.status, 404 | 405),
                "{method} {path} is not in the document: {answer:?}"
            );
            return self.check_body("#/components/schemas/Problem", answer);
        };
        let pointer = format!("{operation}/responses/{}", answer.status);
        let pointer = match self.document.pointer(&pointer) {
            Some(_) => pointer,
            None => format!("{operation}/responses/default"),
        };
        let response = self.document.pointer(&pointer);
        let response = response.unwrap_or_else(|| {
            panic!(
                "{method} {path} answers {}, which is not in the document",
                answer.status
            )
        });
        let (response, pointer) = match response["$ref"].as_str() {
            Some(reference) => (
                self.document.pointer(&reference[1..]).unwrap(),
                reference[1..].to_owned(),
            ),
            None => (response, pointer),
        };
        let headers = response["headers"].as_object();
        for name in headers.into_iter().flat_map(|headers| headers.keys()) {
            assert!(
                answer.header(name).is_some(),
                "{method} {path} lacks {name}: {answer:?}"
            );
        }
        match response.get("content").and_then(Value::as_object) {
            None => assert_eq!(answer.body, "", "{method} {path}"),
            Some(content) => {
                let (kind, _) = content.iter().next().unwrap();
                let given = answer.header("content-type").unwrap_or_default();
                assert!(
                    given.starts_with(kind.as_str()),
                    "{method} {path}: {given} is not {kind}"
                );
                if kind == "application/json" {
                    self.check_body(&format!("#{pointer}/content/application~1json/schema"), answer);
                }
            }
        }
    }

    /// The operation's place in the document.
    fn operation(&self, method: &str, path: &str) -> Option<String> {
        let path: Vec<_> = path.split('?').next()?.split('/').collect();
        let fits = |pattern: &&String| {
            let pattern: Vec<_> = pattern.split('/').collect();
            let same = pattern
                .iter()
                .zip(&path)
                .all(|(part, given)| *part == "{id}" || part == given);
            pattern.len() == path.len() && same
        };
        let pattern = self.document["paths"].as_object()?.keys().find(fits)?;
        let method = method.to_lowercase();
        self.document["paths"][pattern].get(&method)?;
        Some(format!("/paths/{}/{method}", pattern.replace('/', "~1")))
    }

    fn check_body(&self, pointer: &str, answer: &Answer) {
        let mut schema = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": pointer.replace('{', "%7B").replace('}', "%7D")});
        for part in ["components", "paths"] {
            schema[part] = self.document[part].clone();
        }
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&answer.json())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{pointer}: {errors:?} in {answer:?}");
    }
}

/// A link's part from the question mark on.
fn query(link: &str) -> &str {
    &link[link.find('?').unwrap()..]
}

async fn plays(player: &mut Player) {
    player.say(json!({"type": "listStreamers"})).await;
    let list = tokio::time::timeout(Duration::from_secs(5), player.next_of("streamerList")).await;
    list.expect("it should be placed");
}
