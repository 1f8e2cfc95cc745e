//! JSON Web Tokens (RFC 7519, and RFC 8725 on what goes wrong with them): whether one is good, and who it names.

use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::jwt_crypto;
use super::rights::{Role, User};

/// The longest token looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// What a token must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// `iss`.
    pub issuer: String,
    /// `aud`, among others perhaps.
    pub audience: String,
    /// How far the clocks of issuer and matchmaker may differ.
    pub leeway: Duration,
    /// The claim that has the user's roles: a name, or several with dots between them, each within the other.
    pub roles_claim: String,
    /// The role that makes an operator.
    pub operator_role: String,
    /// The role that makes a player; every user is one where there is none.
    pub player_role: Option<String>,
}

/// The issuer's public keys that are for signatures, each with how it signs.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// Whom a token names, and how long it is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Who.
    pub user: User,
    /// Until when, in Unix time.
    pub expires: Duration,
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It names a key that the issuer didn't have when it was asked last; or it names none, and the only key is not its.
    #[error("it was signed with a key that its issuer does not publish")]
    UnknownKey,
    /// It is not a token, or not a good one.
    #[error("{0}")]
    Bad(String),
    /// It is good, but its user has no business here.
    #[error("its user lacks the role {0:?}")]
    NoRole(String),
}

impl KeySet {
    /// Those keys of a set that are public keys for signatures, of a kind that we know.
    pub fn new(set: &JwkSet) -> Self {
        jwt_crypto::install();
        Self(set.keys.iter().filter_map(Key::new).collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that a token names; the only one there is where it names none.
    fn find(&self, id: Option<&str>) -> Result<&Key, Rejected> {
        match (id, &self.0[..]) {
            (None, [only]) => Ok(only),
            (None, _) => Err(Rejected::Bad("it does not name its key (kid)".to_owned())),
            (Some(id), keys) => {
                let found = keys.iter().find(|key| key.id.as_deref() == Some(id));
                found.ok_or(Rejected::UnknownKey)
            }
        }
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Option<Self> {
        if matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature) {
            return None;
        }
        let mut algorithms = algorithms(&jwk.algorithm)?;
        if let Some(only) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| only == (*algorithm).into());
        }
        let key = DecodingKey::from_jwk(jwk)
            .ok()
            .filter(|_| !algorithms.is_empty())?;
        let id = jwk.common.key_id.clone();
        Some(Self { id, key, algorithms })
    }
}

/// How a key may have signed: what it is decides, and never the token. A shared secret has no place in a set of
/// public keys.
fn algorithms(key: &AlgorithmParameters) -> Option<Vec<Algorithm>> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    match key {
        AlgorithmParameters::RSA(_) => Some(vec![RS256, RS384, RS512, PS256, PS384, PS512]),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Some(vec![ES256]),
            EllipticCurve::P384 => Some(vec![ES384]),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(key) => (key.curve == EllipticCurve::Ed25519).then(|| vec![EdDSA]),
        _ => None,
    }
}

/// Whether `token` is good by `rules` and `keys`, and whom it names.
///
/// # Errors
/// [`Rejected`]; after [`Rejected::UnknownKey`] it may be worth to ask the issuer for its keys again.
pub fn verify(token: &str, keys: &KeySet, rules: &Rules) -> Result<Accepted, Rejected> {
    let bad = |error: jsonwebtoken::errors::Error| Rejected::Bad(error.to_string());
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Rejected::Bad(format!(
            "it is longer than {MAX_TOKEN_BYTES} bytes"
        )));
    }
    let header = decode_header(token).map_err(bad)?;
    let key = keys.find(header.kid.as_deref())?;
    let mut validation = Validation::default();
    validation.algorithms.clone_from(&key.algorithms);
    validation.leeway = rules.leeway.as_secs();
    validation.validate_nbf = true;
    validation.set_issuer(&[&rules.issuer]);
    validation.set_audience(&[&rules.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims: Map<String, Value> = decode(token, &key.key, &validation)
        .map_err(|error| match (&header.kid, error.kind()) {
            // It names no key, so that it may well be signed with a new one.
            (None, ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm) => Rejected::UnknownKey,
            _ => bad(error),
        })?
        .claims;
    let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
    let user = User {
        name: name(&claims),
        role: role(&claims, rules)?,
    };
    Ok(Accepted {
        user,
        expires: Duration::try_from_secs_f64(expires).unwrap_or_default(),
    })
}

/// For logs: what people call the user, or else the subject.
fn name(claims: &Map<String, Value>) -> String {
    let claim = |name: &str| claims.get(name).and_then(Value::as_str);
    let name = claim("preferred_username").or(claim("sub")).unwrap_or_default();
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn role(claims: &Map<String, Value>, rules: &Rules) -> Result<Role, Rejected> {
    let has = |role: &str| has_role(claims, &rules.roles_claim, role);
    if has(&rules.operator_role) {
        return Ok(Role::Operator);
    }
    match &rules.player_role {
        Some(needed) if !has(needed) => Err(Rejected::NoRole(needed.clone())),
        _ => Ok(Role::Player),
    }
}

/// Roles come as a list of texts, or as one text with spaces between them, as scopes do.
fn has_role(claims: &Map<String, Value>, claim: &str, role: &str) -> bool {
    // A claim may have dots in its own name, as those with a URL for a name do.
    let found = claims.get(claim).or_else(|| {
        let mut names = claim.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |within, name| within.get(name))
    });
    match found {
        Some(Value::Array(roles)) => roles.iter().any(|given| given == role),
        Some(Value::String(roles)) => roles.split(' ').any(|given| given == role),
        _ => false,
    }
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
