//! Who gets in, by the real program.

mod provider;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use penstock_core::wire::agent::Problem;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::provider::Provider;
use crate::eventually;
use crate::support::{self, Matchmaker, Player, StandIn, ask_over};

#[tokio::test]
async fn without_a_password_nothing_is_to_be_had_but_what_is_open_to_all() {
    let files = Files::with_users();
    let door = Matchmaker::start_guarded(&[], &files.basic()).await;
    let document = door.ask("GET", "/openapi.json", &[], "").await.json();
    let mut guarded = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "parameters")
        {
            let path = path.replace("{id}", "none");
            let headers = [("content-type", "application/json")];
            let answer = door.ask(&method.to_uppercase(), &path, &headers, "{}").await;
            if operation["security"] == json!([]) {
                assert!(answer.status < 300, "{method} {path}: {answer:?}");
                continue;
            }
            guarded += 1;
            // A WebSocket's path too: a page whose socket failed asks there without one.
            assert_eq!(answer.status, 401, "{method} {path}: {answer:?}");
            let Problem { error } = serde_json::from_str(&answer.body).unwrap();
            assert!(!error.is_empty());
            assert_eq!(answer.header("www-authenticate"), Some(BASIC), "{method} {path}");
        }
    }
    assert!(guarded >= 9, "{guarded}");
    for path in ["/signalling", "/", "/signalling?watch=x"] {
        assert_eq!(
            Player::try_connect(door.address(), path, &[]).await.err(),
            Some(401),
            "{path}"
        );
    }
    assert_eq!(door.ask("GET", "/assets/player.js", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_password_opens_the_page_and_its_cookie_the_socket() {
    let streamer = StandIn::start("demo").await;
    let files = Files::with_users();
    let door = Matchmaker::start_guarded(&[&streamer], &files.basic()).await;
    let ann = basic("ann", "north");
    let page = door.ask("GET", "/", &[("authorization", &ann)], "").await;
    assert_eq!((page.status, &*page.body), (200, "<p>the page</p>"));
    let set = page.header("set-cookie").unwrap();
    for part in ["; Path=/;", "; HttpOnly", "; SameSite=Lax", "Max-Age=43200"] {
        assert!(set.contains(part), "{set}");
    }
    assert!(
        !set.contains("Secure"),
        "without TLS the browser would keep it to itself: {set}"
    );
    let cookie = set.split(';').next().unwrap().to_owned();
    assert!(
        Player::try_connect(door.address(), "/signalling", &[("cookie", &cookie)])
            .await
            .is_ok()
    );
    let forged = cookie.replace("penstock_login=", "penstock_login=x");
    for wrong in [&*forged, "penstock_login=", "other=1"] {
        let refused = Player::try_connect(door.address(), "/signalling", &[("cookie", wrong)]).await;
        assert_eq!(refused.err(), Some(401), "{wrong}");
    }
    // Ann plays; only the operator sees others.
    for path in ["/sessions", "/status", "/ice-servers", "/signalling?id=demo"] {
        let answer = door.ask("GET", path, &[("cookie", &cookie)], "").await;
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
    let without_a_socket = door.ask("GET", "/signalling", &[("cookie", &cookie)], "").await;
    assert_eq!(without_a_socket.status, 426, "{without_a_socket:?}");
    let pinned = Player::try_connect(door.address(), "/signalling?id=demo", &[("cookie", &cookie)]).await;
    assert_eq!(pinned.err(), Some(403));
    let oscar = basic("oscar", "south");
    assert_eq!(
        door.ask("GET", "/sessions", &[("authorization", &oscar)], "")
            .await
            .status,
        200
    );
    let pinned = [("authorization", &*oscar)];
    assert!(
        Player::try_connect(door.address(), "/signalling?id=demo", &pinned)
            .await
            .is_ok()
    );

    // What a request says itself counts for more than what the browser remembers.
    let both = [("cookie", &*cookie), ("authorization", &*oscar)];
    assert_eq!(door.ask("GET", "/sessions", &both, "").await.status, 200);
    let wrong = basic("oscar", "guess");
    let both = [("cookie", &*cookie), ("authorization", &*wrong)];
    assert_eq!(door.ask("GET", "/", &both, "").await.status, 401);

    let out = door.ask("DELETE", "/login", &[("cookie", &cookie)], "").await;
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));

    // Ann is taken out of the file.
    files.write_users(&[("oscar", "south")]);
    eventually(async || door.ask("GET", "/", &[("cookie", &cookie)], "").await.status == 401).await;
    assert_eq!(
        door.ask("GET", "/", &[("authorization", &ann)], "").await.status,
        401
    );
}

#[tokio::test]
async fn who_guesses_passwords_is_slowed_down_and_alone() {
    let files = Files::with_users();
    let args = with(&files.basic(), &["--trusted-proxy", "127.0.0.1"]);
    let door = Matchmaker::start_guarded(&[], &args).await;
    let ask = async |from: &str, password: &str| {
        let credentials = basic("ann", password);
        let headers = [("authorization", &*credentials), ("x-forwarded-for", from)];
        door.ask("GET", "/", &headers, "").await
    };
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(ask("192.0.2.1", "guess").await);
    }
    assert!(answers[..10].iter().all(|answer| answer.status == 401));
    let slowed = answers.iter().find(|answer| answer.status == 429);
    assert!(slowed.unwrap().header("retry-after").is_some());
    assert_eq!(ask("192.0.2.2", "north").await.status, 200);
    for _ in 0..20 {
        assert_eq!(
            ask("192.0.2.3", "north").await.status,
            200,
            "who knows the password is never slowed down"
        );
    }
}

/// Behind one NAT, at the beginning of a lesson.
#[tokio::test]
async fn thirty_who_sign_in_at_once_from_one_address_all_get_in() {
    let files = Files::with_users();
    let door = Matchmaker::start_guarded(&[], &files.basic()).await;
    let ann = basic("ann", "north");
    let headers = [("authorization", &*ann)];
    let asked = (0..30).map(|_| door.ask("GET", "/", &headers, ""));
    let answers = futures_util::future::join_all(asked).await;
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200; 30]);
}

#[tokio::test]
async fn a_join_link_admits_to_what_it_says_and_nothing_else() {
    let streamer = StandIn::start("demo").await;
    let files = Files::with_users();
    let args = with(&files.basic(), &["--join-link-ttl", "2s"]);
    let door = Matchmaker::start_guarded(&[&streamer], &args).await;
    let query = join_link(&door).await;
    let page = door.ask("GET", &format!("/{query}"), &[], "").await;
    assert_eq!(page.status, 200, "{page:?}");
    let cookie = page
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let socket = format!("/signalling{query}");
    assert!(
        Player::try_connect(door.address(), &format!("{socket}&id=other&watch=x"), &[])
            .await
            .is_ok()
    );
    // Its page gets TURN credentials for its own streamer when it has one; these would reach others.
    for path in ["/sessions", "/status", "/ice-servers"] {
        assert_eq!(
            door.ask("GET", &format!("{path}{query}"), &[], "").await.status,
            403,
            "{path}"
        );
    }
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let late = door.ask("GET", &format!("/{query}"), &[], "").await;
    assert_eq!(late.status, 403);
    assert!(late.body.contains("expired"), "{late:?}");
    assert_eq!(
        Player::try_connect(door.address(), &socket, &[]).await.err(),
        Some(403)
    );
    // The browser that opened it in time comes back after the network was away, but not for ever.
    let again = door
        .ask("GET", &format!("/{query}"), &[("cookie", &cookie)], "")
        .await;
    assert_eq!(
        (again.status, again.header("set-cookie")),
        (200, None),
        "{again:?}"
    );
    assert!(
        Player::try_connect(door.address(), &socket, &[("cookie", &cookie)])
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn one_link_has_one_player_however_often_it_is_opened() {
    let streamers = [StandIn::start("a").await, StandIn::start("b").await];
    let files = Files::with_users();
    let door = Matchmaker::start_guarded(&streamers.each_ref(), &files.basic()).await;
    let socket = format!("/signalling{}", join_link(&door).await);
    let mut first = door.player(&socket).await;
    is_placed(&mut first).await;
    let mut second = door.player(&socket).await;
    let refused = second.next_of("subscribeFailed").await;
    assert!(
        refused["message"].as_str().unwrap().contains("in use"),
        "{refused}"
    );
    assert_eq!(second.closed().await, Some(1008));
    let other = format!("/signalling{}", join_link(&door).await);
    is_placed(&mut door.player(&other).await).await;
    first.leave().await;
    is_placed(&mut door.player(&socket).await).await;
}

async fn is_placed(player: &mut Player) {
    player.say(json!({"type": "listStreamers"})).await;
    player.next_of("streamerList").await;
}

#[tokio::test]
async fn one_user_has_so_many_players() {
    let streamers = [StandIn::start("a").await, StandIn::start("b").await];
    let files = Files::with_users();
    let args = with(&files.basic(), &["--max-per-user", "1"]);
    let door = Matchmaker::start_guarded(&streamers.each_ref(), &args).await;
    let connect = async |name, password| {
        let authorization = basic(name, password);
        let headers = [("authorization", &*authorization)];
        let player = Player::try_connect(door.address(), "/signalling", &headers).await;
        player.unwrap()
    };
    let mut first = connect("ann", "north").await;
    is_placed(&mut first).await;
    assert_eq!(connect("ann", "north").await.closed().await, Some(1008));
    is_placed(&mut connect("oscar", "south").await).await;
}

#[tokio::test]
async fn replicas_with_one_key_take_each_others_links() {
    let files = Files::with_users();
    std::fs::write(files.path("key"), "k".repeat(48)).unwrap();
    let (basic, key) = (files.basic(), files.path("key"));
    let shared = with(&basic, &["--signing-key-file", &key]);
    let streamer = StandIn::start("demo").await;
    let first = Matchmaker::start_guarded(&[&streamer], &shared).await;
    let second = Matchmaker::start_guarded(&[], &shared).await;
    let stranger = Matchmaker::start_guarded(&[], &basic).await;
    let page = format!("/{}", join_link(&first).await);
    assert_eq!(second.ask("GET", &page, &[], "").await.status, 200);
    assert_eq!(stranger.ask("GET", &page, &[], "").await.status, 403);
}

#[tokio::test]
async fn until_the_provider_comes_nobody_can_sign_in_and_that_is_said() {
    let provider = Provider::new().await;
    let door = Matchmaker::start_guarded(&[], &provider.args()).await;
    eventually(async || !door.get("/readyz").await.1.contains("agent")).await;
    let not_ready = door.ask("GET", "/readyz", &[], "").await;
    assert!(
        not_ready.status == 503 && not_ready.body.contains("identity provider"),
        "{not_ready:?}"
    );
    let ann = provider.bearer(&|_| {});
    let early = door.ask("GET", "/", &[("authorization", &ann)], "").await;
    assert_eq!(
        (early.status, early.header("retry-after")),
        (503, Some("5")),
        "{early:?}"
    );
    provider.comes();
    eventually(async || door.ask("GET", "/readyz", &[], "").await.status == 200).await;
    assert_eq!(status(&door, "/", &ann).await, 200);
}

#[tokio::test]
async fn tokens_say_who_may_do_what() {
    let provider = Provider::new().await;
    let door = provider.door().await;
    let nobody = door.ask("GET", "/", &[], "").await;
    assert_eq!(
        (nobody.status, nobody.header("www-authenticate")),
        (401, Some(r#"Bearer realm="penstock""#))
    );
    let ann = provider.bearer(&|_| {});
    assert_eq!(status(&door, "/", &ann).await, 200);
    assert_eq!(status(&door, "/sessions", &ann).await, 403);
    let oscar = provider.bearer(&|claims| claims["roles"] = json!(["penstock:operator"]));
    assert_eq!(status(&door, "/sessions", &oscar).await, 200);
    let other = provider.bearer(&|claims| claims["aud"] = json!("another program"));
    let refused = door.ask("GET", "/", &[("authorization", &other)], "").await;
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(challenge.contains(r#"error="invalid_token""#), "{challenge}");
    assert_eq!(status(&door, "/", &basic("ann", "x")).await, 401);

    let login = door.ask("POST", "/login", &[("authorization", &oscar)], "").await;
    assert_eq!(login.status, 204, "{login:?}");
    let cookie = login.header("set-cookie").unwrap().split(';').next().unwrap();
    let socket = Player::try_connect(door.address(), "/signalling?id=x", &[("cookie", cookie)]).await;
    assert!(socket.is_ok(), "{:?}", socket.err());
}

/// The keys were fetched just now, so they are fetched again only after ten seconds: whoever invents tokens can't have
/// the provider asked more often.
#[tokio::test]
async fn a_new_key_is_known_without_a_restart_and_the_last_good_ones_are_kept() {
    let provider = Provider::new().await;
    let door = provider.door().await;
    let old = provider.bearer(&|_| {});
    assert_eq!(status(&door, "/", &old).await, 200);
    provider.changes_keys();
    let new = provider.bearer(&|_| {});
    let asked = provider.asked();
    for _ in 0..20 {
        if status(&door, "/", &new).await == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(status(&door, "/", &new).await, 200);
    assert_eq!(provider.asked() - asked, 1);
    assert_eq!(status(&door, "/", &old).await, 401);
    provider.goes();
    assert_eq!(status(&door, "/", &new).await, 200);
}

async fn status(door: &Matchmaker, path: &str, authorization: &str) -> u16 {
    let headers = [("authorization", authorization)];
    door.ask("GET", path, &headers, "").await.status
}

#[tokio::test]
async fn others_than_this_machine_get_in_only_where_someone_said_so() {
    let output = support::run(&["--listen", "0.0.0.0:0", "--page", page().to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--auth none"), "{said}");
}

/// Whoever tells all programs of a node to read their files again does not mean to end this one.
#[tokio::test]
async fn a_hang_up_ends_nothing_where_there_is_nothing_to_read() {
    let door = Matchmaker::start(&[], &[]).await;
    door.hang_up();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(door.ask("GET", "/healthz", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_page_of_another_site_gets_no_socket_and_changes_nothing() {
    let door = Matchmaker::start(&[], &["--allow-origin", "https://portal.example"]).await;
    let own = format!("http://{}", door.address());
    for (origin, status) in [
        (&*own, None),
        ("https://portal.example", None),
        ("https://evil.example", Some(403)),
        ("null", Some(403)),
    ] {
        for path in ["/signalling", "/"] {
            let socket = Player::try_connect(door.address(), path, &[("origin", origin)]).await;
            assert_eq!(socket.err(), status, "{origin} {path}");
        }
        let headers = [
            ("origin", origin),
            ("host", &own["http://".len()..]),
            ("content-type", "application/json"),
        ];
        let made = door.ask("POST", "/sessions", &headers, "{}").await;
        assert_eq!(made.status == 403, status.is_some(), "{origin}: {made:?}");
    }
}

/// A site may have its name lead to our address, and to the browser its pages are then of our own origin.
#[tokio::test]
async fn without_authentication_a_foreign_host_name_opens_nothing() {
    let door = Matchmaker::start(&[], &["--public-url", "http://play.example/"]).await;
    for (host, let_in) in [
        ("evil.example:18080", false),
        ("play.example", true),
        ("localhost:8080", true),
        ("127.0.0.1:8080", true),
    ] {
        let origin = format!("http://{host}");
        let headers = [
            ("host", host),
            ("origin", &*origin),
            ("content-type", "application/json"),
        ];
        let made = door.ask("POST", "/sessions", &headers, "{}").await;
        assert_eq!(made.status != 403, let_in, "{host}: {made:?}");
        assert!(let_in || made.body.contains("--public-url"), "{made:?}");
        let seen = door.ask("GET", "/sessions", &headers, "").await;
        assert_eq!(seen.status != 403, let_in, "{host}: {seen:?}");
        let socket = Player::try_connect(door.address(), "/signalling", &[("host", host)]).await;
        assert_eq!(socket.is_ok(), let_in, "{host}");
    }
    let files = Files::with_users();
    let door = Matchmaker::start_guarded(&[], &files.basic()).await;
    let oscar = basic("oscar", "south");
    let headers = [("host", "play.example"), ("authorization", &*oscar)];
    assert_eq!(door.ask("GET", "/sessions", &headers, "").await.status, 200);
}

#[tokio::test]
async fn one_address_has_so_many_players_and_others_have_theirs() {
    let args = ["--trusted-proxy", "127.0.0.1", "--max-per-address", "2"];
    let door = Matchmaker::start(&[], &args).await;
    let connect = async |from: &str| {
        Player::try_connect(door.address(), "/signalling", &[("x-forwarded-for", from)]).await
    };
    let first = connect("2001:db8::1").await.unwrap();
    let second = connect("2001:db8::2").await.unwrap();
    assert_eq!(connect("2001:db8::3").await.err(), Some(429));
    let headers = [("x-forwarded-for", "2001:db8::3")];
    let without_a_socket = door.ask("GET", "/signalling", &headers, "").await;
    assert_eq!(
        without_a_socket.status, 429,
        "a page is told why: {without_a_socket:?}"
    );
    assert_eq!(without_a_socket.header("retry-after"), Some("1"));
    assert_eq!(
        connect("1.1.1.1, 2001:db8::3").await.err(),
        Some(429),
        "what a client adds counts for nothing"
    );
    assert!(connect("2001:db8:0:1::1").await.is_ok());
    first.leave().await;
    eventually(async || connect("2001:db8::3").await.is_ok()).await;
    drop(second);
}

#[tokio::test]
async fn one_address_has_so_many_connections() {
    let door = Matchmaker::start(&[], &["--max-per-address", "3"]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(door.address()).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    // One more is closed before it gets to say anything.
    let mut refused = TcpStream::connect(door.address()).await.unwrap();
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut refused, &mut byte);
    let read = tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("it should be closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    held.clear();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(door.ask("GET", "/healthz", &[], "").await.status, 200);
    assert_eq!(refusals(&door).await["connections"], 1);
}

/// What is kept of a request before anybody said who they are.
#[tokio::test]
async fn headers_that_go_on_and_on_are_not_kept() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let door = Matchmaker::start(&[], &[]).await;
    let mut stream = TcpStream::connect(door.address()).await.unwrap();
    let begun = format!("GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {}", "x".repeat(40 << 10));
    stream.write_all(begun.as_bytes()).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
    assert!(answer.is_ok(), "it should be refused or closed");
}

#[tokio::test]
async fn refusals_are_counted_by_reason() {
    let streamer = StandIn::start("demo").await;
    let files = Files::with_users();
    let args = with(
        &files.basic(),
        &["--max-per-address", "1", "--trusted-proxy", "127.0.0.1"],
    );
    let door = Matchmaker::start_guarded(&[&streamer], &args).await;
    let none = refusals(&door).await;
    assert_eq!(none.len(), 10, "{none:?}");
    assert!(
        none.values().all(|count| *count == 0),
        "all are there from the start: {none:?}"
    );

    let (ann, wrong) = (basic("ann", "north"), basic("ann", "south"));
    let from = ("x-forwarded-for", "192.0.2.7");
    assert_eq!(door.ask("GET", "/", &[], "").await.status, 401);
    assert_eq!(status(&door, "/", &wrong).await, 401);
    assert_eq!(status(&door, "/sessions", &ann).await, 403);
    assert_eq!(status(&door, "/?join=forged", &ann).await, 403);
    let evil = [("origin", "https://evil.example"), from, ("authorization", &*ann)];
    let elsewhere = Player::try_connect(door.address(), "/signalling", &evil).await;
    assert_eq!(elsewhere.err(), Some(403));
    let page = [from, ("authorization", &*ann)];
    let mut player = Player::try_connect(door.address(), "/signalling", &page)
        .await
        .unwrap();
    let second = Player::try_connect(door.address(), "/signalling", &page).await;
    assert_eq!(second.err(), Some(429));
    for _ in 0..300 {
        player.say_text(r#"{"type":"pong","time":1}"#).await;
    }
    assert_eq!(player.closed().await, Some(1008));
    let seen = refusals(&door).await;
    let counted = [
        "anonymous",
        "credentials",
        "rights",
        "link",
        "origin",
        "players",
        "messages",
    ];
    for (reason, count) in seen {
        let expected = u32::from(counted.contains(&&*reason));
        assert_eq!(count, expected, "{reason}");
    }
}

/// By reason.
async fn refusals(door: &Matchmaker) -> BTreeMap<String, u32> {
    let metrics = door.metrics().await;
    let lines = metrics.lines();
    let lines = lines.filter_map(|line| line.strip_prefix("penstock_matchmaker_refused_total{reason=\""));
    lines
        .filter_map(|line| line.split_once("\"} "))
        .map(|(reason, count)| (reason.to_owned(), count.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn pages_and_sockets_go_over_tls_and_the_certificate_is_exchanged_under_way() {
    let files = Files::with_users();
    let old = files.write_certificate();
    let (certificate, key) = (files.path("tls.crt"), files.path("tls.key"));
    let basic = files.basic();
    let args = with(&basic, &["--tls-cert", &certificate, "--tls-key", &key]);
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start_guarded(&[&streamer], &args).await;
    let ann = self::basic("ann", "north");
    let connection = tls(&door, &old).await.unwrap();
    let page = ask_over(connection, "GET", "/", &[("authorization", &ann)], "").await;
    assert_eq!(page.status, 200, "{page:?}");
    let cookie = page.header("set-cookie").unwrap();
    assert!(cookie.contains("; Secure"), "{cookie}");
    let oscar = self::basic("oscar", "south");
    let oscar = [("authorization", &*oscar), ("content-type", "application/json")];
    let made = ask_over(tls(&door, &old).await.unwrap(), "POST", "/sessions", &oscar, "{}").await;
    let link = made.json()["joinUrl"].as_str().unwrap().to_owned();
    assert!(link.starts_with("https://127.0.0.1/?join="), "{link}");
    let request = format!("wss://localhost/signalling{}", &link[link.find('?').unwrap()..]);
    let connection = tls(&door, &old).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, connection)
        .await
        .unwrap();
    let first = futures_util::StreamExt::next(&mut socket).await.unwrap().unwrap();
    assert!(first.to_text().unwrap().contains("config"));
    // Plain text gets nothing.
    let mut plain = TcpStream::connect(door.address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");

    let new = files.write_certificate();
    door.hang_up();
    eventually(async || tls(&door, &new).await.is_ok()).await;
    assert!(tls(&door, &old).await.is_err());
    // Who is in stays in.
    futures_util::SinkExt::send(&mut socket, r#"{"type":"ping","time":1}"#.into())
        .await
        .unwrap();
    let pong = async {
        loop {
            let frame = futures_util::StreamExt::next(&mut socket).await.unwrap().unwrap();
            if frame.to_text().is_ok_and(|text| text.contains("pong")) {
                return;
            }
        }
    };
    tokio::time::timeout(support::PATIENCE, pong)
        .await
        .expect("no pong");
}

#[tokio::test]
async fn all_of_it_can_be_under_a_path() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start_at("/play", &[&streamer], &["--path-prefix", "/play"]).await;
    let page = door.ask("GET", "/play/", &[], "").await;
    assert_eq!((page.status, &*page.body), (200, "<p>the page</p>"));
    let asset = door.ask("GET", "/play/assets/player.js", &[], "").await;
    assert!(asset.status == 200 && asset.header("cache-control").unwrap().contains("immutable"));
    let edge = door.ask("GET", "/play?join=x", &[], "").await;
    assert_eq!(
        (edge.status, edge.header("location")),
        (308, Some("/play/?join=x"))
    );
    for path in ["/", "/signalling", "/sessions", "/assets/player.js", "/player/"] {
        let outside = door.ask("GET", path, &[], "").await;
        assert_eq!(outside.status, 404, "{path}");
        assert!(outside.json()["error"].as_str().unwrap().contains("/play/"));
    }
    for path in [
        "/healthz",
        "/play/healthz",
        "/readyz",
        "/metrics",
        "/play/metrics",
        "/play/status",
    ] {
        assert_eq!(door.ask("GET", path, &[], "").await.status, 200, "{path}");
    }
    let json = [("content-type", "application/json")];
    let made = door.ask("POST", "/play/sessions", &json, "{}").await;
    let link = made.json()["joinUrl"].as_str().unwrap().to_owned();
    assert!(link.starts_with("http://127.0.0.1/play/?join="), "{link}");
    let document = door.ask("GET", "/play/openapi.json", &[], "").await.json();
    assert_eq!(document["servers"][0]["url"], "/play/");
    for path in ["/play/signalling", "/play/", "/play"] {
        let mut ann = door.player(path).await;
        ann.next_of("config").await;
    }
}

/// Files that the program reads, in a folder of their own.
struct Files(TempDir);

impl Files {
    fn with_users() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write_users(&[("ann", "north"), ("oscar", "south")]);
        files
    }

    fn write_users(&self, users: &[(&str, &str)]) {
        // The cheapest hashes that there are; `htpasswd` marks them with 2y.
        let line = |(name, password): &(&str, &str)| {
            let hash = bcrypt::hash(password, 4).unwrap().replace("$2b$", "$2y$");
            format!("{name}:{hash}\n")
        };
        std::fs::write(self.path("users"), users.iter().map(line).collect::<String>()).unwrap();
    }

    /// A new certificate for localhost, and its key.
    fn write_certificate(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(self.path("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(self.path("tls.key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn basic(&self) -> Vec<String> {
        let users = self.path("users");
        ["--auth", "basic", "--users", &users, "--operator", "oscar"]
            .map(str::to_owned)
            .to_vec()
    }
}

/// The query of a link that the operator has made.
async fn join_link(door: &Matchmaker) -> String {
    let oscar = basic("oscar", "south");
    let headers = [("authorization", &*oscar), ("content-type", "application/json")];
    let made = door.ask("POST", "/sessions", &headers, "{}").await;
    let link = made.json()["joinUrl"].as_str().unwrap().to_owned();
    link[link.find('?').unwrap()..].to_owned()
}

/// Both lists of arguments.
fn with(args: &[String], more: &[&str]) -> Vec<String> {
    args.iter()
        .cloned()
        .chain(more.iter().map(|arg| (*arg).to_owned()))
        .collect()
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

async fn tls(door: &Matchmaker, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(door.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Any page will do.
fn page() -> PathBuf {
    let page = std::env::temp_dir().join(format!("penstock-page-{}", std::process::id()));
    std::fs::create_dir_all(&page).unwrap();
    std::fs::write(page.join("index.html"), "").unwrap();
    page
}

const BASIC: &str = r#"Basic realm="penstock", charset="UTF-8""#;
