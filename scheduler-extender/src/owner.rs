//! The index's one owner: a task that does one thing after the other.
//!
//! ```text
//!   watches ──change──┐
//!   bind    ──change──┼──► the owner: Index ──► "it has changed" ──► binds that wait
//!   verbs   ────ask───┘
//! ```

use tokio::sync::{mpsc, oneshot, watch};

use crate::index::Index;

/// The way to the owner.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    work: mpsc::Sender<Work>,
    changes: watch::Receiver<u64>,
}

type Work = Box<dyn FnOnce(&mut Index) -> Changed + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Yes,
    No,
}

/// The owner has ended, and with it the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the extender is ending: ask again")]
pub(crate) struct Ending;

/// The way to an owner, and the owner itself, which ends once nobody can ask it any more.
pub(crate) fn own(mut index: Index) -> (Owner, impl Future<Output = ()>) {
    let (work, mut inbox) = mpsc::channel::<Work>(INBOX);
    let (count, changes) = watch::channel(0);
    let serve = async move {
        while let Some(work) = inbox.recv().await {
            if work(&mut index) == Changed::Yes {
                count.send_modify(|count| *count += 1);
            }
        }
    };
    (Owner { work, changes }, serve)
}

impl Owner {
    /// Puts a question.
    ///
    /// # Errors
    /// Where the program is ending.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Index) -> T + Send + 'static,
    ) -> Result<T, Ending> {
        let (answer, answered) = oneshot::channel();
        let work = Box::new(move |index: &mut Index| {
            // Who asked may have gone meanwhile.
            let _ = answer.send(question(index));
            Changed::No
        });
        self.work.send(work).await.map_err(|_| Ending)?;
        answered.await.map_err(|_| Ending)
    }

    /// Tells of a change, after which those who wait for one look again.
    ///
    /// # Errors
    /// Where the program is ending.
    pub(crate) async fn tell(&self, change: impl FnOnce(&mut Index) + Send + 'static) -> Result<(), Ending> {
        let work = Box::new(move |index: &mut Index| {
            change(index);
            Changed::Yes
        });
        self.work.send(work).await.map_err(|_| Ending)
    }

    /// Counts the changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// So many may wait for the owner before who comes next waits to be let in: more than a scheduler asks at a time.
const INBOX: usize = 1024;
