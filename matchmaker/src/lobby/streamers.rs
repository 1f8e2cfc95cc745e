//! What streamers do and say.

use std::net::SocketAddr;
use std::time::Instant;

use penstock_core::ids::{PlayerId, StreamerId};
use penstock_core::wire::link::{DisconnectPlayer, FromStreamer, RefusedReason};
use penstock_core::wire::signalling::{IceCandidate, Notice, Offer, ToPlayer};
use penstock_core::wire::status::StreamerStatus;

use super::types::{Command, LinkId, Outcome, Place, Streamer, Want};
use super::{Lobby, REFUSED_PAUSE};

impl Lobby {
    pub(super) fn status(&mut self, address: SocketAddr, status: StreamerStatus) {
        // What it says now is newer than its last no.
        let streamer = Streamer {
            status,
            paused_until: None,
        };
        self.streamers.insert(address, streamer);
    }

    pub(super) fn link_said(&mut self, now: Instant, link: LinkId, message: FromStreamer) {
        // An old link may still speak while it closes.
        let Some(id) = self.links.get(&link).cloned() else {
            return;
        };
        match message {
            FromStreamer::Claimed(claimed) => self.claimed(now, &id, claimed.streamer_id),
            FromStreamer::Refused(refused) => self.refused(now, &id, refused.reason),
            FromStreamer::Offer(offer) => self.offer(&id, offer),
            FromStreamer::IceCandidate(candidate) => self.candidate(&id, candidate),
            FromStreamer::DisconnectPlayer(end) => self.ended(&id, end),
            FromStreamer::Pong(_) => {}
        }
    }

    fn claimed(&mut self, now: Instant, id: &PlayerId, streamer: StreamerId) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        let Place::Claiming { link, address, .. } = player.place else {
            return;
        };
        player.place = Place::Matched {
            link,
            address,
            streamer: streamer.clone(),
            since: now,
            subscribed: false,
            offered: false,
        };
        let session_id = match (&player.want, self.streamers.get(&address)) {
            (Want::Watch(_), Some(known)) => known.status.session_id.clone(),
            _ => None,
        };
        let session_id = session_id.unwrap_or_else(|| player.session.clone());
        let waited = now.saturating_duration_since(player.in_order_since);
        self.queue.remove(&player.order);
        self.out.push(Command::Count(Outcome::Claimed(waited)));
        let streamer_id = streamer;
        self.send(
            id,
            ToPlayer::Matchmaker(Notice::Matched {
                streamer_id,
                session_id,
            }),
        );
        self.configure(id, address);
        self.send_list(id);
    }

    /// Gives a page credentials for this streamer, just before it hears of it: a page makes a new peer connection of
    /// each `config`.
    fn configure(&mut self, id: &PlayerId, address: SocketAddr) {
        let known = self.streamers.get(&address);
        let peers = known.map_or_else(Vec::new, |known| known.status.media_addresses.clone());
        self.out.push(Command::Configure {
            player: id.clone(),
            peers,
        });
    }

    fn refused(&mut self, now: Instant, id: &PlayerId, reason: RefusedReason) {
        let Some(player) = self.players.get(id) else {
            return;
        };
        let Place::Claiming { address, .. } = player.place else {
            return;
        };
        let viewer = player.watches().is_some();
        self.out.push(Command::Count(Outcome::Refused));
        match reason {
            RefusedReason::TooManyViewers => {
                self.fail_viewer(
                    id,
                    "This session has as many viewers as it takes. Try again later.",
                );
            }
            RefusedReason::NoSuchSession => self.no_such_session(id),
            RefusedReason::Starting | RefusedReason::Busy | RefusedReason::Draining if viewer => {
                self.fail_viewer(id, "This session takes no viewers now. Try again later.");
            }
            RefusedReason::Starting | RefusedReason::Busy | RefusedReason::Draining => {
                self.pause(now, address);
                self.release(id);
                self.requeue(now, id);
            }
        }
    }

    /// Leaves a streamer alone for a while, or until it says something new of itself.
    fn pause(&mut self, now: Instant, address: SocketAddr) {
        if let Some(streamer) = self.streamers.get_mut(&address) {
            streamer.paused_until = Some(now + REFUSED_PAUSE);
        }
    }

    fn offer(&mut self, id: &PlayerId, offer: Offer) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        // An offer that nobody asked for would only confuse the page.
        let Place::Matched {
            subscribed: true,
            offered,
            ..
        } = &mut player.place
        else {
            return;
        };
        *offered = true;
        self.send(
            id,
            ToPlayer::Offer(Offer {
                player_id: id.clone(),
                ..offer
            }),
        );
    }

    fn candidate(&mut self, id: &PlayerId, candidate: IceCandidate) {
        let offered = self.players.get(id).map(|player| &player.place);
        if matches!(offered, Some(Place::Matched { offered: true, .. })) {
            let player_id = Some(id.to_string());
            self.send(
                id,
                ToPlayer::IceCandidate(IceCandidate {
                    player_id,
                    ..candidate
                }),
            );
        }
    }

    /// The streamer ends the player. The protocol closes the page with 1011.
    fn ended(&mut self, id: &PlayerId, end: DisconnectPlayer) {
        let reason = end
            .reason
            .unwrap_or_else(|| "The streamer ended the session.".to_owned());
        self.release(id);
        if let Some(player) = self.players.get_mut(id) {
            player.place = Place::Idle;
            self.queue.remove(&player.order);
        }
        self.send(
            id,
            ToPlayer::Matchmaker(Notice::Ended {
                reason: reason.clone(),
            }),
        );
        let close = Command::Close {
            player: id.clone(),
            code: STREAMER_ENDED_IT,
            reason,
        };
        self.out.push(close);
    }

    /// A link ended by itself: the streamer died, or never answered. The player keeps its place in the order, and
    /// its socket: a page takes a second list as well as the first.
    pub(super) fn link_closed(&mut self, now: Instant, link: LinkId) {
        let Some(id) = self.links.remove(&link) else {
            return;
        };
        let Some(player) = self.players.get(&id) else {
            return;
        };
        let Some((_, address)) = player.place.link() else {
            return;
        };
        let was_matched = matches!(player.place, Place::Matched { .. });
        if self.holders.get(&address) == Some(&id) {
            self.holders.remove(&address);
        }
        self.pause(now, address);
        if was_matched {
            let reason = "The connection to the streamer was lost. Looking for another one.".to_owned();
            self.send(&id, ToPlayer::Matchmaker(Notice::Ended { reason }));
        } else {
            self.out.push(Command::Count(Outcome::Failed));
        }
        self.requeue(now, &id);
    }
}

/// The close code of `disconnectPlayer` in the Pixel Streaming protocol.
const STREAMER_ENDED_IT: u16 = 1011;
