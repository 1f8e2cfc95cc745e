//! A stand-in OpenID provider: a discovery document, keys, and tokens.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::eventually;
use crate::support::Matchmaker;

/// It is away until it comes.
pub(super) struct Provider {
    address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    here: bool,
    asked: u32,
    key: EcdsaKeyPair,
    key_id: String,
}

impl Provider {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Mutex::new(Inner {
            here: false,
            asked: 0,
            key: new_key(),
            key_id: "1".to_owned(),
        }));
        let issuer = issuer(address);
        let document = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
        let app = Router::new()
            .route(
                "/realm/.well-known/openid-configuration",
                get(async move || Json(document)),
            )
            .route("/realm/keys", get(keys))
            .with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, inner }
    }

    pub(super) fn args(&self) -> Vec<String> {
        let issuer = issuer(self.address);
        let args = [
            "--auth",
            "oidc",
            "--oidc-issuer",
            &issuer,
            "--oidc-audience",
            "penstock",
        ];
        args.map(str::to_owned).to_vec()
    }

    pub(super) fn comes(&self) {
        self.inner.lock().unwrap().here = true;
    }

    pub(super) fn goes(&self) {
        self.inner.lock().unwrap().here = false;
    }

    /// How often its keys were asked for.
    pub(super) fn asked(&self) -> u32 {
        self.inner.lock().unwrap().asked
    }

    /// The old one is gone at once.
    pub(super) fn changes_keys(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.key = new_key();
        inner.key_id.push('1');
    }

    /// The program, once it has the keys.
    pub(super) async fn door(&self) -> Matchmaker {
        self.comes();
        let door = Matchmaker::start_guarded(&[], &self.args()).await;
        eventually(async || door.ask("GET", "/readyz", &[], "").await.status == 200).await;
        door
    }

    /// A header with a token.
    pub(super) fn bearer(&self, change: &dyn Fn(&mut Value)) -> String {
        format!("Bearer {}", self.token(change))
    }

    fn token(&self, change: &dyn Fn(&mut Value)) -> String {
        let inner = self.inner.lock().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({
            "iss": issuer(self.address), "aud": "penstock", "sub": "u-1", "exp": now + 300,
        });
        change(&mut claims);
        let header = json!({"alg": "ES256", "kid": inner.key_id});
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let signature = inner.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

async fn keys(State(inner): State<Arc<Mutex<Inner>>>) -> Result<Json<Value>, StatusCode> {
    let mut inner = inner.lock().unwrap();
    inner.asked += 1;
    if !inner.here {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let point = inner.key.public_key().as_ref();
    let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    let key = json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": inner.key_id, "x": x, "y": y});
    Ok(Json(json!({"keys": [key]})))
}

fn new_key() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap()
}

fn issuer(address: SocketAddr) -> String {
    format!("http://{address}/realm")
}
