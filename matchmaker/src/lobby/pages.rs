//! What pages do and say.

use std::time::Instant;

use penstock_core::ids::{PlayerId, SessionId};
use penstock_core::wire::link::{Back, Goodbye, PlayerConnected, ToStreamer};
use penstock_core::wire::signalling::{
    Answer, Failure, FromPlayer, IceCandidate, LayerPreference, StreamerIdChanged, StreamerList, ToPlayer,
};

use super::types::{Command, Parting, Place, Player, Return, Returning, Want};
use super::{Lobby, RETURN_WAIT};

impl Lobby {
    pub(super) fn joined(
        &mut self,
        now: Instant,
        id: PlayerId,
        session: SessionId,
        want: Want,
        back: Return,
    ) {
        self.last_order += 1;
        let may_return = back != Return::Never;
        let back = match back {
            Return::Now { token, live } => Some(Returning {
                back: Back { token, live },
                until: now + RETURN_WAIT,
            }),
            Return::Never | Return::Later => None,
        };
        let player = Player {
            want,
            session,
            order: self.last_order,
            in_order_since: now,
            waits_since: now,
            place: Place::Idle,
            told: None,
            may_return,
            back,
            asked: false,
            subscribed_to: None,
        };
        if player.back.is_some() || player.watches().is_some() {
            self.apart.insert(id.clone());
        }
        self.players.insert(id.clone(), player);
        self.requeue(now, &id);
    }

    pub(super) fn left(&mut self, now: Instant, id: &PlayerId, parting: Parting) {
        self.say_goodbye(id, parting);
        self.release(id);
        if let Some(player) = self.players.remove(id) {
            self.queue.remove(now, player.order);
        }
    }

    /// Tells the streamer how its player has gone. Of one who was lost nothing is said, since nothing is known.
    fn say_goodbye(&mut self, id: &PlayerId, parting: Parting) {
        let link = self.players.get(id).and_then(|player| player.place.link());
        let for_good = match parting {
            Parting::ForGood => true,
            Parting::Closed => false,
            Parting::Lost => return,
        };
        if let Some((link, _)) = link {
            let message = ToStreamer::Goodbye(Goodbye { for_good });
            self.out.push(Command::Tell { link, message });
        }
    }

    pub(super) fn said(&mut self, now: Instant, id: &PlayerId, message: FromPlayer) {
        match message {
            FromPlayer::ListStreamers => self.list_asked(now, id),
            FromPlayer::Subscribe(wish) => self.subscribe(id, &wish.streamer_id),
            FromPlayer::Unsubscribe => self.unsubscribe(now, id),
            FromPlayer::Answer(answer) => self.relay(id, "answer", |player| {
                ToStreamer::Answer(Answer {
                    player_id: Some(player),
                    ..answer
                })
            }),
            FromPlayer::IceCandidate(candidate) => self.relay(id, "iceCandidate", |player| {
                ToStreamer::IceCandidate(IceCandidate {
                    player_id: Some(player),
                    ..candidate
                })
            }),
            FromPlayer::LayerPreference(wish) => self.relay(id, "layerPreference", |player| {
                ToStreamer::LayerPreference(LayerPreference {
                    player_id: Some(player),
                    ..wish
                })
            }),
            FromPlayer::Ping(ping) => self.send(id, ToPlayer::Pong(ping)),
            FromPlayer::Pong(_) | FromPlayer::Unknown => {}
        }
    }

    /// The answer to `listStreamers` is held back until there is one: an empty list makes stock pages poll a few
    /// times and give up.
    fn list_asked(&mut self, now: Instant, id: &PlayerId) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        player.asked = true;
        match player.place {
            Place::Matched { .. } => self.send_list(id),
            Place::Idle => self.rejoin(now, id),
            Place::Waiting { .. } | Place::Claiming { .. } => {}
        }
    }

    /// Back from idleness, to the end of the queue.
    fn rejoin(&mut self, now: Instant, id: &PlayerId) {
        self.last_order += 1;
        if let Some(player) = self.players.get_mut(id) {
            player.order = self.last_order;
            player.in_order_since = now;
            player.waits_since = now;
        }
        self.requeue(now, id);
    }

    /// Sends the list if the page asked for one. A page that was subscribed to another streamer goes on looking for
    /// that one by name, so it is told first that the name has changed; then it takes the new one and makes a new
    /// peer connection.
    pub(super) fn send_list(&mut self, id: &PlayerId) {
        let Some(player) = self.players.get(id).filter(|player| player.asked) else {
            return;
        };
        let Place::Matched { streamer, .. } = &player.place else {
            return;
        };
        let streamer = streamer.clone();
        let renamed = player.subscribed_to.as_ref().is_some_and(|old| *old != streamer);
        if renamed {
            let message = ToPlayer::StreamerIdChanged(StreamerIdChanged {
                new_id: streamer.clone(),
            });
            self.send(id, message);
        }
        self.send(id, ToPlayer::StreamerList(StreamerList { ids: vec![streamer] }));
    }

    fn subscribe(&mut self, id: &PlayerId, wish: &str) {
        let Some(player) = self.players.get(id) else {
            return;
        };
        match &player.place {
            Place::Matched {
                streamer, subscribed, ..
            } if streamer.as_str() == wish => {
                if *subscribed {
                    self.error(
                        id,
                        "subscribe: this page is subscribed already; unsubscribe first",
                    );
                } else {
                    self.connect(id);
                }
            }
            _ => {
                // What the page sent is not repeated: it may be anything.
                let message = "There is no streamer of that name for this page. Wait for streamerList, and take one of its names.";
                self.send(
                    id,
                    ToPlayer::SubscribeFailed(Failure {
                        message: message.to_owned(),
                    }),
                );
            }
        }
    }

    /// Tells the streamer that its player is ready for an offer.
    pub(super) fn connect(&mut self, id: &PlayerId) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        let Place::Matched {
            link,
            streamer,
            subscribed,
            ..
        } = &mut player.place
        else {
            return;
        };
        *subscribed = true;
        player.subscribed_to = Some(streamer.clone());
        let message = ToStreamer::PlayerConnected(PlayerConnected {
            player_id: id.clone(),
            data_channel: true,
            sfu: false,
        });
        self.out.push(Command::Tell { link: *link, message });
    }

    fn unsubscribe(&mut self, now: Instant, id: &PlayerId) {
        self.say_goodbye(id, Parting::ForGood);
        self.release(id);
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        player.place = Place::Idle;
        self.queue.remove(now, player.order);
    }

    /// Passes a message on to the player's streamer, once that has made an offer. Whom it is from is what we say,
    /// never what the page says.
    fn relay(&mut self, id: &PlayerId, kind: &str, message: impl FnOnce(String) -> ToStreamer) {
        match self.players.get(id).map(|player| &player.place) {
            Some(Place::Matched {
                link, offered: true, ..
            }) => {
                let (link, message) = (*link, message(id.to_string()));
                self.out.push(Command::Tell { link, message });
            }
            _ => self.error(
                id,
                &format!("{kind}: it was not passed on, since there is no offer that it could be for"),
            ),
        }
    }

    fn error(&mut self, id: &PlayerId, message: &str) {
        self.send(
            id,
            ToPlayer::Error(Failure {
                message: message.to_owned(),
            }),
        );
    }
}
