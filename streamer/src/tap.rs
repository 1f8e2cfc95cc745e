//! Our interceptor in a peer connection's packet chain. It stands in the pacer's slot, where every packet on its way
//! out passes, generated ones too, and every RTCP packet on its way in.
//!
//! It hands keyframe requests on to the streamer's owner, counts what leaves and what feedback comes, holds back
//! retransmissions that are too many, and marks video to be shown at once (playout delay 0). A rate controller and pacer
//! belong here.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use rtc::interceptor::{Attribute, Interceptor, Packet, StreamInfo, TaggedPacket};
use rtc::rtcp::payload_feedbacks::full_intra_request::FullIntraRequest;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::transport_feedbacks::transport_layer_cc::TransportLayerCc;
use rtc::sansio::Protocol;
use rtc::shared::error::Error;

use crate::metrics::Metrics;
use crate::owner::OwnerHandle;
use crate::pace::{KeyframeFor, ResendBudget};

/// The header extension that tells a receiver how long to hold frames back
/// (webrtc.org/experiments/rtp-hdrext/playout-delay).
pub(crate) const PLAYOUT_DELAY_URI: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";

/// Twelve bits each of least and most delay, in units of 10 ms.
const NO_DELAY: Bytes = Bytes::from_static(&[0, 0, 0]);

pub(crate) struct Tap {
    owner: OwnerHandle,
    keyframes_for: KeyframeFor,
    metrics: Metrics,
    resend: ResendBudget,
    /// The playout-delay extension's number per stream that negotiated it.
    playout_delay: HashMap<u32, u8>,
    inward: VecDeque<TaggedPacket>,
    outward: VecDeque<TaggedPacket>,
}

impl Tap {
    /// Of a peer that sees pictures, and asks for keyframes as `keyframes_for`.
    pub(crate) fn new(owner: OwnerHandle, keyframes_for: KeyframeFor, metrics: Metrics) -> Self {
        Self {
            owner,
            keyframes_for,
            metrics,
            resend: ResendBudget::default(),
            playout_delay: HashMap::new(),
            inward: VecDeque::new(),
            outward: VecDeque::new(),
        }
    }

    fn look_at_feedback(&self, packets: &[Box<dyn rtc::rtcp::Packet>]) {
        for packet in packets {
            let packet = packet.as_any();
            if packet.is::<PictureLossIndication>() || packet.is::<FullIntraRequest>() {
                self.owner.keyframe(self.keyframes_for);
            } else if packet.is::<TransportLayerCc>() {
                self.metrics.transport_feedback.inc();
            }
        }
    }

    fn mark(&self, packet: &mut rtc::rtp::Packet) {
        if let Some(id) = self.playout_delay.get(&packet.header.ssrc) {
            // Refused only for numbers that were never negotiated.
            let _ = packet.header.set_extension(*id, NO_DELAY);
        }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Tap {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, msg: TaggedPacket) -> Result<(), Error> {
        if let Packet::Rtcp(packets) = &msg.message.packet {
            self.look_at_feedback(packets);
        }
        self.inward.push_back(msg);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.inward.pop_front()
    }

    fn handle_write(&mut self, mut msg: TaggedPacket) -> Result<(), Error> {
        let again = msg.message.has(&Attribute::Retransmission);
        if let Packet::Rtp(packet) = &mut msg.message.packet {
            match again {
                true if !self.resend.take(packet.payload.len()) => return Ok(()),
                true => {}
                false => self.resend.sent(packet.payload.len()),
            }
            self.metrics.sent_packets.inc();
            self.metrics.sent_bytes.inc_by(packet.payload.len() as u64);
            self.mark(packet);
        }
        self.outward.push_back(msg);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.outward.pop_front()
    }
}

impl Interceptor for Tap {
    fn bind_local_stream(&mut self, info: &StreamInfo) {
        let extension = info
            .rtp_header_extensions
            .iter()
            .find(|e| e.uri == PLAYOUT_DELAY_URI);
        if let Some(id) = extension.and_then(|e| u8::try_from(e.id).ok()) {
            self.playout_delay.insert(info.ssrc, id);
        }
    }

    fn unbind_local_stream(&mut self, info: &StreamInfo) {
        self.playout_delay.remove(&info.ssrc);
    }

    fn bind_remote_stream(&mut self, _info: &StreamInfo) {}

    fn unbind_remote_stream(&mut self, _info: &StreamInfo) {}
}

#[cfg(test)]
mod tests {
    use rtc::interceptor::AttributedPacket;
    use rtc::shared::TransportContext;

    use super::*;

    #[test]
    fn packets_that_are_asked_for_again_and_again_are_not_all_sent() {
        let mut tap = Tap::new(
            OwnerHandle::nowhere(),
            KeyframeFor::Viewer,
            Metrics::new().unwrap(),
        );
        let mut sent = |again: bool| {
            let packet = rtc::rtp::Packet {
                payload: Bytes::from_static(&[0; 1_000]),
                ..Default::default()
            };
            let mut message = AttributedPacket::new(Packet::Rtp(packet));
            if again {
                message.add(Attribute::Retransmission);
            }
            let (now, transport) = (Instant::now(), TransportContext::default());
            tap.handle_write(TaggedPacket {
                now,
                transport,
                message,
            })
            .unwrap();
            tap.poll_write().is_some()
        };
        assert!((0..2_000).any(|_| !sent(true)), "no bound");
        assert!((0..2_000).all(|_| sent(false)), "new packets pass");
        assert!(sent(true));
    }
}
