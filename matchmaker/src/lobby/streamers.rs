//! What streamers do and say.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use penstock_core::ids::PlayerId;
use penstock_core::wire::link::{Claimed, DisconnectPlayer, Draining, FromStreamer, RefusedReason};
use penstock_core::wire::signalling::{EndKind, IceCandidate, Notice, Offer, ToPlayer};
use penstock_core::wire::status::StreamerStatus;

use super::types::{Command, LinkId, Outcome, Place, Streamer};
use super::{Lobby, REFUSED_PAUSE};

impl Lobby {
    pub(super) fn status(&mut self, address: SocketAddr, status: StreamerStatus) {
        // What it says now is newer than its last no.
        let streamer = Streamer {
            status,
            paused_until: None,
        };
        self.streamers.insert(address, streamer);
        self.changed = true;
    }

    pub(super) fn link_said(&mut self, now: Instant, link: LinkId, message: FromStreamer) {
        // An old link may still speak while it closes.
        let Some(id) = self.links.get(&link).cloned() else {
            return;
        };
        match message {
            FromStreamer::Claimed(claimed) => self.claimed(now, &id, claimed),
            FromStreamer::Refused(refused) => self.refused(now, &id, refused.reason),
            FromStreamer::Offer(offer) => self.offer(&id, offer),
            FromStreamer::IceCandidate(candidate) => self.candidate(&id, candidate),
            FromStreamer::Draining(Draining { seconds_left }) => {
                self.send(&id, ToPlayer::Matchmaker(Notice::Draining { seconds_left }));
            }
            FromStreamer::DisconnectPlayer(end) => self.ended(now, &id, end),
            FromStreamer::Pong(_) => {}
        }
    }

    /// The streamer said yes. A page that goes on with its peer connection needs no list and no offer: it is where it
    /// was before its socket broke.
    fn claimed(&mut self, now: Instant, id: &PlayerId, claimed: Claimed) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        let Place::Claiming {
            link, address, peers, ..
        } = &mut player.place
        else {
            return;
        };
        let (link, address, peers) = (*link, *address, std::mem::take(peers));
        // What was asked for is what the streamer has now, and it may say so only later.
        self.changed = true;
        let resumed = claimed.resumed;
        player.place = Place::Matched {
            link,
            address,
            streamer: claimed.streamer_id.clone(),
            since: now,
            subscribed: resumed,
            offered: resumed,
        };
        if resumed {
            player.asked = true;
            player.subscribed_to = Some(claimed.streamer_id.clone());
        }
        let returned = player.back.take().is_some();
        // Viewers and those who come back wait for one streamer, and not for one that is free.
        let queues = !returned && player.watches().is_none();
        let waited = queues.then(|| now.saturating_duration_since(player.waits_since));
        let queued = player.told.is_some() && queues;
        let order = player.order;
        if queued {
            let streamer = self.streamers.get(&address).map(|streamer| &streamer.status);
            self.queue.placed(now, order, streamer);
            self.turnover.placed(now);
        }
        self.queue.remove(now, order);
        self.out.push(Command::Count(Outcome::Claimed(waited)));
        self.send(
            id,
            ToPlayer::Matchmaker(Notice::Matched {
                streamer_id: claimed.streamer_id,
                session_id: claimed.session_id,
                return_token: claimed.return_token,
                resumed,
                shared: claimed.shared,
            }),
        );
        if !resumed {
            self.configure(id, address, peers);
            self.send_list(id);
        }
    }

    /// Gives a page credentials for this streamer, just before it hears of it: a page makes a new peer connection of
    /// each `config`. What the streamer says now counts, and what it `said` when it was asked where it is not heard.
    fn configure(&mut self, id: &PlayerId, address: SocketAddr, said: Vec<IpAddr>) {
        let known = self.streamers.get(&address);
        let peers = known.map_or(said, |known| known.status.media_addresses.clone());
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
        let returns = player.back.is_some();
        self.out.push(Command::Count(Outcome::Refused));
        match reason {
            RefusedReason::NoSuchSession if returns => self.too_late(now, id),
            _ if returns => {
                self.pause(now, address);
                self.release(id);
                self.requeue(now, id);
            }
            RefusedReason::Exclusive => {
                self.fail_viewer(id, "This session is for its player alone.");
            }
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

    /// The seat is not kept any more: from now on the player waits as everyone.
    fn too_late(&mut self, now: Instant, id: &PlayerId) {
        self.release(id);
        if let Some(player) = self.players.get_mut(id) {
            player.back = None;
        }
        self.requeue(now, id);
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

    /// The streamer ends the player. The protocol closes the page with 1011, unless it is to go on elsewhere.
    fn ended(&mut self, now: Instant, id: &PlayerId, end: DisconnectPlayer) {
        let reason = end
            .reason
            .unwrap_or_else(|| "The streamer ended the session.".to_owned());
        let address = self.players.get(id).and_then(|player| player.place.link());
        self.release(id);
        if end.kind == EndKind::Moves {
            if let Some((_, address)) = address {
                self.pause(now, address);
            }
            return self.moves(now, id, reason);
        }
        if let Some(player) = self.players.get_mut(id) {
            player.place = Place::Idle;
            self.queue.remove(now, player.order);
        }
        self.send(
            id,
            ToPlayer::Matchmaker(Notice::Ended {
                reason: reason.clone(),
                kind: end.kind,
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
        self.let_go(&id, address);
        self.pause(now, address);
        if was_matched {
            let reason = "The connection to the streamer was lost.".to_owned();
            return self.moves(now, &id, reason);
        }
        self.out.push(Command::Count(Outcome::Failed));
        self.requeue(now, &id);
    }

    /// A player who loses its streamer goes to another one, before all who came after it.
    fn moves(&mut self, now: Instant, id: &PlayerId, reason: String) {
        let kind = EndKind::Moves;
        self.send(id, ToPlayer::Matchmaker(Notice::Ended { reason, kind }));
        if let Some(player) = self.players.get_mut(id) {
            player.waits_since = now;
        }
        self.requeue(now, id);
    }
}

/// The close code of `disconnectPlayer` in the Pixel Streaming protocol.
const STREAMER_ENDED_IT: u16 = 1011;
