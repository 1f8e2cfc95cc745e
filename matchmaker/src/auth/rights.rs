//! Who may do what. All of it is here, and nothing else decides.
//!
//! |            | nobody | link to play | link to watch | player | operator |
//! |---|---|---|---|---|---|
//! | page                   | | ✓ | ✓ | ✓ | ✓ |
//! | play                   | | ✓ |   | ✓ | ✓ |
//! | watch                  | |   | ✓ | ✓ | ✓ |
//! | choose a streamer      | |   |   |   | ✓ |
//! | overview               | |   |   |   | ✓ |
//! | list, make, end sessions | | |   |   | ✓ |
//! | ICE servers without a session | | | | | ✓ |
//!
//! What a link admits to exactly (which application, which session) is in the link; here is only of which kind it is.
//! `/healthz`, `/readyz` and `/metrics` ask nobody: they are for the operators' network.

use serde::{Deserialize, Serialize};

use crate::join::{Admits, Link};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Someone who has shown nothing.
    Nobody,
    /// Someone with a join link.
    Guest(Link),
    /// Someone who has signed in.
    User(User),
}

/// Someone who has signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, as whoever vouches for it gives it.
    pub name: String,
    /// What the user may do.
    pub role: Role,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Play, and watch.
    Player,
    /// Everything.
    Operator,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The page itself.
    OpenPage,
    /// ICE servers with credentials that reach more than one streamer. Pages are told of theirs when they have a streamer.
    GetIceServers,
    /// To wait for a streamer, and play.
    Play,
    /// To watch a session whose name is known.
    Watch,
    /// To play on one streamer and no other.
    ChooseStreamer,
    /// To see how everything stands.
    SeeOverview,
    /// To see all sessions with their names, and so be able to watch each.
    ListSessions,
    /// To make join links.
    CreateSession,
    /// To end someone's session.
    EndSession,
}

/// See the module.
pub fn may(who: &Who, action: Action) -> bool {
    use Action::{OpenPage, Play, Watch};
    match who {
        Who::Nobody => false,
        Who::Guest(link) => match link.admits {
            Admits::Player(_) => matches!(action, OpenPage | Play),
            Admits::Viewer { .. } => matches!(action, OpenPage | Watch),
        },
        Who::User(user) => match user.role {
            Role::Player => matches!(action, OpenPage | Play | Watch),
            Role::Operator => true,
        },
    }
}

#[cfg(test)]
mod tests {
    use penstock_core::ids::SessionId;

    use super::*;
    use crate::lobby::Wish;

    #[test]
    fn who_may_do_what() {
        use Action::{
            ChooseStreamer, CreateSession, EndSession, GetIceServers, ListSessions, OpenPage, Play,
            SeeOverview, Watch,
        };
        let session = SessionId::new("s").unwrap();
        let user = |role| {
            Who::User(User {
                name: "ann".into(),
                role,
            })
        };
        let everyone = [
            Who::Nobody,
            Who::Guest(Link::new(Admits::Player(Wish::default()))),
            Who::Guest(Link::new(Admits::Viewer { session })),
            user(Role::Player),
            user(Role::Operator),
        ];
        for (action, expected) in [
            (OpenPage, [false, true, true, true, true]),
            (GetIceServers, [false, false, false, false, true]),
            (Play, [false, true, false, true, true]),
            (Watch, [false, false, true, true, true]),
            (ChooseStreamer, [false, false, false, false, true]),
            (SeeOverview, [false, false, false, false, true]),
            (ListSessions, [false, false, false, false, true]),
            (CreateSession, [false, false, false, false, true]),
            (EndSession, [false, false, false, false, true]),
        ] {
            let allowed = everyone.each_ref().map(|who| may(who, action));
            assert_eq!(allowed, expected, "{action:?}");
        }
    }
}
