//! Tokens, good ones and bad ones. The good ones are signed here with ring; RSA keys are made by the `openssl` program,
//! since ring makes none.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::json;

use super::*;

#[test]
fn a_good_token_names_its_user_and_role() {
    let issuer = Issuer::new();
    for (roles, role) in [
        (json!(["penstock:operator", "other"]), Role::Operator),
        (json!("a penstock:operator"), Role::Operator),
        (json!(["operator"]), Role::Player),
        (json!(7), Role::Player),
        (json!(null), Role::Player),
    ] {
        let accepted = issuer.verify(|claims| claims["roles"] = roles.clone()).unwrap();
        assert_eq!(accepted.user.role, role, "{roles}");
        assert_eq!(accepted.user.name, "ann");
        assert_eq!(accepted.expires.as_secs(), now() + 300);
    }
}

#[test]
fn roles_are_found_within_claims_and_may_be_required() {
    let issuer = Issuer::new();
    let mut rules = rules();
    rules.roles_claim = "realm_access.roles".to_owned();
    rules.player_role = Some("player".to_owned());
    let verify = |roles: Value| {
        let token = issuer.token(|claims| claims["realm_access"] = json!({"roles": roles}));
        verify(&token, &issuer.keys(), &rules).map(|accepted| accepted.user.role)
    };
    assert_eq!(verify(json!(["player"])), Ok(Role::Player));
    assert_eq!(verify(json!(["penstock:operator"])), Ok(Role::Operator));
    assert_eq!(verify(json!([])), Err(Rejected::NoRole("player".to_owned())));
}

#[test]
fn a_token_for_another_time_place_or_issuer_is_rejected() {
    let issuer = Issuer::new();
    let change = |name: &'static str, value: Value| {
        issuer.verify(move |claims| {
            claims[name] = value;
        })
    };
    // Half a minute's difference between clocks is allowed.
    assert!(change("exp", json!(now() - 20)).is_ok());
    assert!(change("nbf", json!(now() + 20)).is_ok());
    assert!(change("aud", json!(["other", "penstock"])).is_ok());
    for (name, value) in [
        ("exp", json!(now() - 40)),
        ("exp", json!(null)),
        ("exp", json!("soon")),
        ("nbf", json!(now() + 40)),
        ("iss", json!("https://id.example/")),
        ("iss", json!(null)),
        ("aud", json!("other")),
        ("aud", json!(["other"])),
        ("aud", json!(null)),
        ("sub", json!(null)),
    ] {
        let rejected = change(name, value.clone());
        assert!(
            matches!(rejected, Err(Rejected::Bad(_))),
            "{name} {value}: {rejected:?}"
        );
    }
}

#[test]
fn what_is_not_signed_by_the_key_that_it_names_is_rejected() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let good = issuer.token(|_| {});
    let verify = |token: &str| verify(token, &issuer.keys(), &rules());
    assert!(verify(&good).is_ok());
    assert!(matches!(verify(&other.token(|_| {})), Err(Rejected::Bad(_))));

    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!()
    };
    let operator = claims_with(|claims| claims["roles"] = json!(["penstock:operator"]));
    for bad in [
        format!("{header}.{}.{signature}", encode(&operator)),
        format!("{header}.{claims}."),
        format!("{header}.{claims}"),
        format!("{}.{claims}.", encode(&json!({"alg": "none", "kid": "ec"}))),
        format!(
            "{}.{claims}.{signature}",
            encode(&json!({"alg": "ES384", "kid": "ec"}))
        ),
        format!("{}.{claims}.{signature}", encode(&json!({"alg": "ES256"}))),
        format!(
            "{}.{claims}.{signature}",
            encode(&json!({"alg": "XS256", "kid": "ec"}))
        ),
        String::new(),
        "..".to_owned(),
        "x".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        assert!(matches!(verify(&bad), Err(Rejected::Bad(_))), "{bad}");
    }
    let unknown = format!(
        "{}.{claims}.{signature}",
        encode(&json!({"alg": "ES256", "kid": "new"}))
    );
    assert_eq!(verify(&unknown), Err(Rejected::UnknownKey));
}

/// The oldest trick: the token says HMAC, and the "secret" is the issuer's public key, which everyone has.
#[test]
fn a_public_key_is_never_a_secret() {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let header = encode(&json!({"alg": "HS256", "kid": "ec"}));
    let message = format!("{header}.{}", encode(&claims_with(|_| {})));
    for secret in [
        issuer.ec.public_key().as_ref(),
        &issuer.ec.public_key().as_ref()[1..],
    ] {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).unwrap();
        mac.update(message.as_bytes());
        let token = format!(
            "{message}.{}",
            URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
        );
        assert!(matches!(verify(&token, &keys, &rules()), Err(Rejected::Bad(_))));
    }
    let secret = json!({"keys": [{"kty": "oct", "kid": "ec", "k": "c2VjcmV0", "alg": "HS256"}]});
    assert!(key_set(secret).is_empty());
}

#[test]
fn keys_of_each_kind_are_known_and_others_passed_over() {
    let (ed, ed_jwk) = ed25519();
    let (rsa, n, e) = rsa();
    let set = json!({"keys": [
        ed_jwk,
        {"kty": "RSA", "kid": "rs", "alg": "RS256", "n": n, "e": e},
        {"kty": "RSA", "kid": "any", "use": "sig", "n": n, "e": e},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": n, "e": e},
        {"kty": "RSA", "kid": "oaep", "alg": "RSA-OAEP", "n": n, "e": e},
        {"kty": "EC", "kid": "p521", "crv": "P-521", "x": "AA", "y": "AA"},
        {"kty": "AKP", "kid": "future", "pub": "AA"},
    ]});
    let keys = key_set(set);
    assert_eq!(keys.len(), 3);
    let check = |kid: &str, alg: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let token = token(&json!({"alg": alg, "kid": kid}), &claims_with(|_| {}), sign);
        verify(&token, &keys, &rules()).map(|accepted| accepted.user.name)
    };
    let sign_rsa = |padding: &'static dyn ring::signature::RsaEncoding, message: &[u8]| {
        let mut signature = vec![0; rsa.public().modulus_len()];
        rsa.sign(padding, &SystemRandom::new(), message, &mut signature)
            .unwrap();
        signature
    };
    let pkcs1 = |message: &[u8]| sign_rsa(&RSA_PKCS1_SHA256, message);
    let pss = |message: &[u8]| sign_rsa(&RSA_PSS_SHA256, message);
    let ann = Ok("ann".to_owned());
    assert_eq!(
        check("ed", "EdDSA", &|message| ed.sign(message).as_ref().to_vec()),
        ann
    );
    assert_eq!(check("rs", "RS256", &pkcs1), ann);
    assert_eq!(check("any", "PS256", &pss), ann);
    // This key is for RS256 only.
    assert!(matches!(check("rs", "PS256", &pss), Err(Rejected::Bad(_))));
    assert!(matches!(check("any", "RS256", &pss), Err(Rejected::Bad(_))));
    for unused in ["enc", "oaep"] {
        assert_eq!(check(unused, "RS256", &pkcs1), Err(Rejected::UnknownKey));
    }
}

#[test]
fn a_name_can_carry_no_line_break() {
    let issuer = Issuer::new();
    let accepted = issuer
        .verify(|claims| claims["preferred_username"] = json!("a\nb"))
        .unwrap();
    assert_eq!(accepted.user.name, "ab");
}

/// Some issuers name no keys. After they change theirs, only the signature shows it.
#[test]
fn a_token_that_names_no_key_may_be_signed_with_a_new_one() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let only = |issuer: &Issuer| KeySet(issuer.keys().0.into_iter().take(1).collect());
    let header = json!({"alg": "ES256", "typ": "JWT"});
    let sign = |message: &[u8]| {
        let signature = new.ec.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().to_vec()
    };
    let token = token(&header, &claims_with(|_| {}), &sign);
    assert!(verify(&token, &only(&new), &rules()).is_ok());
    assert_eq!(
        verify(&token, &only(&old), &rules()),
        Err(Rejected::UnknownKey),
        "the issuer is asked again"
    );
}

struct Issuer {
    ec: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap();
        Self { ec }
    }

    fn keys(&self) -> KeySet {
        let point = self.ec.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        let (_, second) = ed25519();
        key_set(json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "ec", "x": x, "y": y}, second]}))
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let header = json!({"alg": "ES256", "kid": "ec", "typ": "JWT"});
        token(&header, &claims_with(change), &|message| {
            let signature = self.ec.sign(&SystemRandom::new(), message).unwrap();
            signature.as_ref().to_vec()
        })
    }

    fn verify(&self, change: impl FnOnce(&mut Value)) -> Result<Accepted, Rejected> {
        verify(&self.token(change), &self.keys(), &rules())
    }
}

fn rules() -> Rules {
    Rules {
        issuer: "https://id.example".to_owned(),
        audience: "penstock".to_owned(),
        leeway: Duration::from_secs(30),
        roles_claim: "roles".to_owned(),
        operator_role: "penstock:operator".to_owned(),
        player_role: None,
    }
}

fn claims_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({
        "iss": "https://id.example", "aud": "penstock", "sub": "u-1", "preferred_username": "ann", "exp": now() + 300,
    });
    change(&mut claims);
    let claims = claims.as_object().unwrap().clone();
    claims
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect::<Map<_, _>>()
        .into()
}

fn token(header: &Value, claims: &Value, sign: &dyn Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn key_set(set: Value) -> KeySet {
    KeySet::new(&serde_json::from_value(set).unwrap())
}

fn ed25519() -> (Ed25519KeyPair, Value) {
    let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    (pair, json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": x}))
}

fn rsa() -> (RsaKeyPair, String, String) {
    let arguments = [
        "genpkey",
        "-algorithm",
        "RSA",
        "-outform",
        "DER",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
    ];
    let made = Command::new("openssl").args(arguments).output().unwrap();
    let pair = RsaKeyPair::from_pkcs8(&made.stdout)
        .or_else(|_| RsaKeyPair::from_der(&made.stdout))
        .unwrap();
    let public: RsaPublicKeyComponents<Vec<u8>> = pair.public().into();
    let [n, e] = [&public.n, &public.e].map(|part| URL_SAFE_NO_PAD.encode(part));
    (pair, n, e)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
