//! How many files a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process open as many files as the system allows it, and says how many those are; `None` is no limit. What
/// starts programs often allows them 1,024 until they ask for more, as containerd 2 and systemd do.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What can't be raised stays as it is, and that is what is said.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_raised_to_what_is_allowed() {
        let allowed = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(256),
            ..allowed
        };
        setrlimit(Resource::Nofile, low).unwrap();
        assert_eq!(raise_limit(), allowed.maximum);
    }
}
