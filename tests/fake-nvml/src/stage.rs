//! For tests: a copy of the library, and the state that it reads.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::State;
use crate::world::STATE_FILE;

/// A stand-in of its own. The test keeps the directory.
#[derive(Debug)]
pub struct Stage {
    library: PathBuf,
    state: PathBuf,
}

impl Stage {
    /// Puts a copy of the library into `directory`, with `state`.
    ///
    /// # Errors
    /// Where the library was not built, or the directory can't be written.
    pub fn set(directory: &Path, state: &State) -> io::Result<Self> {
        let stage = Self {
            library: directory.join(LIBRARY),
            state: directory.join(STATE_FILE),
        };
        // A copy, not a link: one file is loaded once per process, however many names it has.
        fs::copy(built()?, &stage.library)?;
        stage.change(state)?;
        Ok(stage)
    }

    /// The library to load.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// From now on the GPUs are like this.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn change(&self, state: &State) -> io::Result<()> {
        // A reader sees the old state or the new one, never half of it.
        let next = self.state.with_extension("next");
        fs::write(&next, serde_json::to_vec_pretty(state)?)?;
        fs::rename(next, &self.state)
    }
}

/// The library that Cargo built: beside the test, or one directory above it.
fn built() -> io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    test.ancestors()
        .skip(1)
        .take(2)
        .flat_map(|directory| [directory.join(LIBRARY), directory.join("deps").join(LIBRARY)])
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let message = format!(
                "there is no {LIBRARY} near {}: build it with `cargo build -p fake-nvml`",
                test.display()
            );
            io::Error::new(io::ErrorKind::NotFound, message)
        })
}

const LIBRARY: &str = "libfake_nvml.so";
