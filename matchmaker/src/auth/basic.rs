//! Users from a file as `htpasswd -B` makes it: `name:$2y$…` on each line; `#` begins a comment.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    hashes: HashMap<String, String>,
    /// Compared with where there is no such user, so that it takes as long.
    nobody: String,
}

/// Why a file of users can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadUsers {
    /// It can't be read.
    #[error("reading the users from {path}: check --users")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A line is not a user.
    #[error(
        "reading the users from {path}, line {line}: {why}. Make the file with `htpasswd -B -c {path} NAME`, or a line \
         with `htpasswd -nB NAME`"
    )]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is nobody in it.
    #[error("reading the users from {0}: there is none in it, so nobody could sign in")]
    Empty(String),
}

/// A name and a password, as they came.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl Users {
    /// Reads the file.
    ///
    /// # Errors
    /// [`BadUsers`] says which line is wrong.
    pub fn read(path: &Path) -> Result<Self, BadUsers> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| BadUsers::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&text, &name)
    }

    fn parse(text: &str, path: &str) -> Result<Self, BadUsers> {
        let mut hashes = HashMap::new();
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why| BadUsers::Line {
                path: path.to_owned(),
                line: number,
                why,
            };
            let (name, hash) = line.split_once(':').ok_or_else(|| bad("there is no colon"))?;
            if name.is_empty() {
                return Err(bad("the name is empty"));
            }
            let parts: bcrypt::HashParts = hash
                .parse()
                .map_err(|_| bad("the password is not a bcrypt hash"))?;
            if !COSTS.contains(&parts.get_cost()) {
                return Err(bad("the cost of the hash is not from 4 to 15"));
            }
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(bad("this user is there already"));
            }
        }
        let Some(nobody) = hashes.values().next().cloned() else {
            return Err(BadUsers::Empty(path.to_owned()));
        };
        Ok(Self { hashes, nobody })
    }

    /// Whether these are a user's. This takes a good part of a second, and as long for a user who is not there: ask on
    /// a thread that nobody waits for.
    pub fn check(&self, credentials: &Credentials) -> bool {
        let hash = self.hashes.get(&credentials.name);
        let fits = bcrypt::verify(&credentials.password, hash.unwrap_or(&self.nobody));
        hash.is_some() && fits.unwrap_or(false)
    }

    /// The password's hash of a user.
    pub fn hash(&self, name: &str) -> Option<&str> {
        self.hashes.get(name).map(String::as_str)
    }
}

impl Credentials {
    /// Reads what stands behind `Basic ` in an Authorization header (RFC 7617). Longer ones than a person would have
    /// are not taken.
    pub fn parse(encoded: &str) -> Option<Self> {
        let bytes = STANDARD.decode(encoded.trim()).ok()?;
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() <= 512)?;
        let (name, password) = text.split_once(':')?;
        Some(Self {
            name: name.to_owned(),
            password: password.to_owned(),
        })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What bcrypt has from below, and about two seconds for one look at a password from above.
const COSTS: std::ops::RangeInclusive<u32> = 4..=15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_password() {
        let hash = bcrypt::hash("s3cret", 4).unwrap().replace("$2b$", "$2y$");
        let users = Users::parse(&format!("# people\n\nann:{hash}\n"), "f").unwrap();
        let check = |name: &str, password: &str| {
            users.check(&Credentials {
                name: name.into(),
                password: password.into(),
            })
        };
        assert!(check("ann", "s3cret"));
        assert!(!check("ann", "s3cre") && !check("ann", "") && !check("bob", "s3cret") && !check("", ""));
    }

    #[test]
    fn a_bad_file_names_the_line() {
        let hash = bcrypt::hash("x", 4).unwrap();
        let dear = hash.replace("$04$", "$31$");
        for (text, says) in [
            ("", "none in it"),
            ("# nobody\n", "none in it"),
            ("\nann", "line 2: there is no colon"),
            ("ann:$apr1$abc", "not a bcrypt hash"),
            ("ann:{SHA}abc=", "not a bcrypt hash"),
            (&*format!("ann:{dear}"), "the cost"),
            (&*format!(":{hash}"), "name is empty"),
            (&*format!("ann:{hash}\nann:{hash}"), "line 2: this user is there"),
        ] {
            let error = Users::parse(text, "people").unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("people"), "{error}");
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = |text: &str| Credentials::parse(&STANDARD.encode(text));
        let ann = header("ann:a:b").unwrap();
        assert_eq!((ann.name.as_str(), ann.password.as_str()), ("ann", "a:b"));
        assert!(!format!("{ann:?}").contains("a:b"));
        assert_eq!(header("ann"), None);
        assert_eq!(header(&format!("ann:{}", "x".repeat(600))), None);
        assert_eq!(Credentials::parse("%%%"), None);
    }
}
