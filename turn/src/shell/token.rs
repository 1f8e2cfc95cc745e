//! How events of epoll are told apart.

use crate::core::RelayId;

/// What an epoll event is about, packed into its 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Listener(u32),
    Relay(RelayId),
    StreamListener(u32),
    Stream(u32),
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Listener(index) => (1 << 32) | u64::from(index),
            Self::Relay(RelayId(relay)) => (2 << 32) | u64::from(relay),
            Self::StreamListener(index) => (3 << 32) | u64::from(index),
            Self::Stream(slot) => (4 << 32) | u64::from(slot),
        }
    }

    pub(super) fn unpack(bits: u64) -> Self {
        let low = bits as u32;
        match bits >> 32 {
            1 => Self::Listener(low),
            2 => Self::Relay(RelayId(low)),
            3 => Self::StreamListener(low),
            4 => Self::Stream(low),
            _ => Self::Wake,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_out_as_it_went_in() {
        for token in [Token::Wake, Token::Listener(3), Token::Relay(RelayId(u32::MAX))] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
