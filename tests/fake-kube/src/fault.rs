//! Trouble on demand.

use std::time::Duration;

/// What goes wrong, with which requests, and how often.
#[derive(Debug, Clone)]
pub struct Fault {
    verb: String,
    resource: String,
    trouble: Trouble,
    left: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Refuse { code: u16, retry_after: Option<u32> },
    Delay(Duration),
}

impl Fault {
    /// Requests are answered with this HTTP status and nothing else happens.
    #[must_use]
    pub fn refuse(code: u16) -> Self {
        Self::of(Trouble::Refuse {
            code,
            retry_after: None,
        })
    }

    /// Requests are answered with 429, and the wish to wait for so many seconds.
    #[must_use]
    pub fn too_many_requests(retry_after: u32) -> Self {
        Self::of(Trouble::Refuse {
            code: 429,
            retry_after: Some(retry_after),
        })
    }

    /// Requests are carried out after that time.
    #[must_use]
    pub fn delay(time: Duration) -> Self {
        Self::of(Trouble::Delay(time))
    }

    fn of(trouble: Trouble) -> Self {
        let any = || "*".to_owned();
        Self {
            verb: any(),
            resource: any(),
            trouble,
            left: None,
        }
    }

    /// Only with requests of that verb (`list`) for that resource (`pods`); `*` is any.
    #[must_use]
    pub fn on(self, verb: &str, resource: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            ..self
        }
    }

    /// Only so often.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self {
            left: Some(times),
            ..self
        }
    }
}

/// The trouble that a request gets into.
pub(crate) fn next(faults: &mut [Fault], verb: &str, resource: &str) -> Option<Trouble> {
    let hits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
    let fault = faults
        .iter_mut()
        .find(|fault| fault.left != Some(0) && hits(&fault.verb, verb) && hits(&fault.resource, resource))?;
    fault.left = fault.left.map(|left| left - 1);
    Some(fault.trouble)
}
