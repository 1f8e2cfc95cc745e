//! Secrets in files, as a mounted Secret gives them. White space around one is left out: editors and `echo` add a line's end.

use std::io;
use std::path::{Path, PathBuf};

/// What a file of secrets is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretFile {
    /// What should be in it, such as `the signing key`.
    pub what: &'static str,
    /// The option that names it.
    pub option: &'static str,
    /// What that takes, as in `it takes a file with …`.
    pub with: &'static str,
}

/// A file has no secret that is of use.
#[derive(Debug, thiserror::Error)]
#[error("reading {} from {}: {} takes a file with {}", about.what, file.display(), about.option, about.with)]
pub struct BadSecret {
    about: SecretFile,
    file: PathBuf,
    source: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Unreadable(io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it holds {0} bytes only")]
    TooShort(usize),
}

impl SecretFile {
    /// The whole of `file` as one secret.
    ///
    /// # Errors
    /// [`BadSecret`] where it can't be read or is empty.
    pub fn read(self, file: &Path) -> Result<Vec<u8>, BadSecret> {
        let bytes = std::fs::read(file).map_err(|error| self.bad(file, Problem::Unreadable(error)))?;
        match bytes.trim_ascii() {
            [] => Err(self.bad(file, Problem::Empty)),
            secret => Ok(secret.to_vec()),
        }
    }

    /// A secret on each line of `file`, one at least.
    ///
    /// # Errors
    /// [`BadSecret`] where it can't be read or is empty.
    pub fn lines(self, file: &Path) -> Result<Vec<Vec<u8>>, BadSecret> {
        let whole = self.read(file)?;
        let lines = whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        Ok(lines
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// What is said of a secret in `file` that has too few `bytes`.
    pub fn too_short(self, file: &Path, bytes: usize) -> BadSecret {
        self.bad(file, Problem::TooShort(bytes))
    }

    fn bad(self, file: &Path, source: Problem) -> BadSecret {
        let (about, file) = (self, file.to_owned());
        BadSecret { about, file, source }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const ABOUT: SecretFile = SecretFile {
        what: "the key",
        option: "--key-file",
        with: "32 bytes",
    };

    #[test]
    fn white_space_around_a_secret_is_none_of_it() {
        let file = file(" new \r\n\n\told\n");
        assert_eq!(ABOUT.read(file.path()).unwrap(), b"new \r\n\n\told");
        assert_eq!(
            ABOUT.lines(file.path()).unwrap(),
            [b"new".to_vec(), b"old".to_vec()]
        );
    }

    #[test]
    fn what_is_wrong_names_the_file_its_purpose_and_the_option() {
        let (empty, short) = (file(" \n"), file("abc"));
        let nowhere = Path::new("/nonexistent");
        for (error, path, why) in [
            (ABOUT.read(empty.path()).unwrap_err(), empty.path(), "it is empty"),
            (
                ABOUT.lines(empty.path()).unwrap_err(),
                empty.path(),
                "it is empty",
            ),
            (ABOUT.read(nowhere).unwrap_err(), nowhere, "No such file"),
            (
                ABOUT.too_short(short.path(), 3),
                short.path(),
                "it holds 3 bytes only",
            ),
        ] {
            let text = format!(
                "reading the key from {}: --key-file takes a file with 32 bytes",
                path.display()
            );
            assert_eq!(error.to_string(), text);
            let source = error.source().unwrap().to_string();
            assert!(source.starts_with(why), "{source}");
        }
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }
}
