//! Frames of the Pixel Streaming data channel: byte 0 names the message, all numbers are little-endian.
//!
//! A text from the page is a `u16` count of UTF-16 units and then UTF-16LE; a text to the page is UTF-16LE to the end
//! of the frame. On open the streamer tells the page its table of messages ([`hello`]), which the page takes for
//! its own.

use serde_json::{Map, Value, json};

use crate::pointer::Normalized;

/// The longest frame taken from a page, in bytes.
pub const MAX_FRAME_BYTES: usize = 64 << 10;

/// A frame from the page.
#[derive(Debug, Clone, PartialEq)]
pub enum FromPage {
    /// The page wants a keyframe.
    IFrameRequest,
    /// The page wants to steer the quality.
    RequestQualityControl,
    /// The page wants the initial settings once more.
    RequestInitialSettings,
    /// The page measures the latency; answered with [`latency_answer`].
    LatencyTest(String),
    /// To be sent back as it is.
    TestEcho(String),
    /// JSON for the application.
    UiInteraction(String),
    /// JSON for the streamer, such as `{"WebRTC.MaxBitrate":…}`.
    Command(String),
    /// Text typed into a field of the page.
    TextboxEntry(String),
    /// A key went down.
    KeyDown {
        /// The browser's key code.
        code: u8,
        /// Whether the keyboard repeats it.
        repeat: bool,
    },
    /// A key went up.
    KeyUp {
        /// The browser's key code.
        code: u8,
    },
    /// The character that a key gave.
    KeyPress {
        /// One UTF-16 unit.
        unit: u16,
    },
    /// The pointer came into the picture.
    MouseEnter,
    /// The pointer left the picture.
    MouseLeave,
    /// A button went down.
    MouseDown {
        /// The browser's button.
        button: u8,
        /// Where.
        at: Normalized,
    },
    /// A button went up.
    MouseUp {
        /// The browser's button.
        button: u8,
        /// Where.
        at: Normalized,
    },
    /// Follows the two presses of a double click, which came as such before.
    MouseDouble,
    /// The pointer moved.
    MouseMove {
        /// Where to.
        at: Normalized,
        /// By how much, in 32,767ths of half the picture: for applications that lock the pointer.
        delta: (i16, i16),
    },
    /// The wheel turned.
    MouseWheel {
        /// 120 a notch, positive away from the user.
        delta: i16,
        /// Where.
        at: Normalized,
    },
    /// Fingers went down.
    TouchStart(Vec<Touch>),
    /// Fingers went up.
    TouchEnd(Vec<Touch>),
    /// Fingers moved.
    TouchMove(Vec<Touch>),
    /// Known, and of no meaning to us.
    Ignored,
}

/// One finger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Where.
    pub at: Normalized,
    /// Which finger.
    pub finger: u8,
    /// Whether it is on the picture.
    pub valid: bool,
}

/// Why a frame could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// No bytes at all.
    #[error("a data-channel frame is empty")]
    Empty,
    /// Longer than any frame is.
    #[error("a data-channel frame of {0} bytes is too long: at most {MAX_FRAME_BYTES} are taken")]
    TooLong(usize),
    /// The message is not in the table that the page was given.
    #[error("data-channel message {0} is not known")]
    Unknown(u8),
    /// The frame ends before its fields do, or goes on after them.
    #[error("data-channel message {id} has {length} bytes, which is not what its fields take")]
    Length {
        /// The message.
        id: u8,
        /// The frame's bytes.
        length: usize,
    },
    /// A text is not UTF-16.
    #[error("the text of data-channel message {0} is not UTF-16")]
    Text(u8),
}

/// Reads one frame of the page.
///
/// # Errors
/// [`BadFrame`], where it is cut short, too long, or unknown.
pub fn parse(frame: &[u8]) -> Result<FromPage, BadFrame> {
    if frame.len() > MAX_FRAME_BYTES {
        return Err(BadFrame::TooLong(frame.len()));
    }
    let (&id, fields) = frame.split_first().ok_or(BadFrame::Empty)?;
    let mut fields = Fields {
        id,
        length: frame.len(),
        rest: fields,
    };
    let message = message(id, &mut fields)?;
    if !fields.rest.is_empty() {
        return Err(BadFrame::Length {
            id,
            length: frame.len(),
        });
    }
    Ok(message)
}

fn message(id: u8, f: &mut Fields<'_>) -> Result<FromPage, BadFrame> {
    Ok(match id {
        0 => FromPage::IFrameRequest,
        1 => FromPage::RequestQualityControl,
        2..=5 => FromPage::Ignored,
        6 => FromPage::LatencyTest(f.text()?),
        7 => FromPage::RequestInitialSettings,
        8 => FromPage::TestEcho(f.text()?),
        50 => FromPage::UiInteraction(f.text()?),
        51 => FromPage::Command(f.text()?),
        52 => FromPage::TextboxEntry(f.text()?),
        60 => FromPage::KeyDown {
            code: f.u8()?,
            repeat: f.u8()? != 0,
        },
        61 => FromPage::KeyUp { code: f.u8()? },
        62 => FromPage::KeyPress { unit: f.u16()? },
        70 => FromPage::MouseEnter,
        71 => FromPage::MouseLeave,
        72 => FromPage::MouseDown {
            button: f.u8()?,
            at: f.point()?,
        },
        73 => FromPage::MouseUp {
            button: f.u8()?,
            at: f.point()?,
        },
        74 => FromPage::MouseMove {
            at: f.point()?,
            delta: (f.i16()?, f.i16()?),
        },
        75 => FromPage::MouseWheel {
            delta: f.i16()?,
            at: f.point()?,
        },
        76 => f.skip(5).map(|()| FromPage::MouseDouble)?,
        80 => FromPage::TouchStart(f.touches()?),
        81 => FromPage::TouchEnd(f.touches()?),
        82 => FromPage::TouchMove(f.touches()?),
        90 | 91 => f.skip(3).map(|()| FromPage::Ignored)?,
        92 => f.skip(10).map(|()| FromPage::Ignored)?,
        93 => FromPage::Ignored,
        94 => f.skip(1).map(|()| FromPage::Ignored)?,
        unknown => return Err(BadFrame::Unknown(unknown)),
    })
}

/// What is left of a frame.
struct Fields<'a> {
    id: u8,
    length: usize,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadFrame> {
        let short = BadFrame::Length {
            id: self.id,
            length: self.length,
        };
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), BadFrame> {
        let short = BadFrame::Length {
            id: self.id,
            length: self.length,
        };
        self.rest = self.rest.get(bytes..).ok_or(short)?;
        Ok(())
    }

    fn u8(&mut self) -> Result<u8, BadFrame> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, BadFrame> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn i16(&mut self) -> Result<i16, BadFrame> {
        Ok(i16::from_le_bytes(self.take()?))
    }

    fn point(&mut self) -> Result<Normalized, BadFrame> {
        Ok(Normalized {
            x: self.u16()?,
            y: self.u16()?,
        })
    }

    fn text(&mut self) -> Result<String, BadFrame> {
        let units = self.u16()?;
        let units: Vec<u16> = (0..units).map(|_| self.u16()).collect::<Result<_, _>>()?;
        String::from_utf16(&units).map_err(|_| BadFrame::Text(self.id))
    }

    fn touches(&mut self) -> Result<Vec<Touch>, BadFrame> {
        let count = self.u8()?;
        (0..count).map(|_| self.touch()).collect()
    }

    fn touch(&mut self) -> Result<Touch, BadFrame> {
        let at = self.point()?;
        let finger = self.u8()?;
        let _force = self.u8()?;
        Ok(Touch {
            at,
            finger,
            valid: self.u8()? != 0,
        })
    }
}

/// A short form of what a frame was, for metrics.
pub fn kind(message: &FromPage) -> &'static str {
    match message {
        FromPage::KeyDown { .. } | FromPage::KeyUp { .. } | FromPage::KeyPress { .. } => "key",
        FromPage::TextboxEntry(_) => "text",
        FromPage::MouseDown { .. } | FromPage::MouseUp { .. } | FromPage::MouseDouble => "button",
        FromPage::MouseMove { .. } | FromPage::MouseEnter | FromPage::MouseLeave => "move",
        FromPage::MouseWheel { .. } => "wheel",
        FromPage::TouchStart(_) | FromPage::TouchEnd(_) | FromPage::TouchMove(_) => "touch",
        _ => "other",
    }
}

/// Messages to the page that carry a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextMessage {
    /// A text for the page's own code.
    Response = 1,
    /// The answer to a latency test.
    LatencyTest = 6,
    /// The encoder's and the connection's settings.
    InitialSettings = 7,
    /// A text given back.
    TestEcho = 11,
    /// The table of messages.
    Protocol = 255,
}

/// A frame with a text.
pub fn text(message: TextMessage, text: &str) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_le_bytes);
    std::iter::once(message as u8).chain(units).collect()
}

/// Tells the page whether it owns quality and input control.
pub fn ownership(owner: bool) -> [[u8; 2]; 2] {
    [[0, u8::from(owner)], [12, u8::from(owner)]]
}

/// What a page is told when the channel opens, in this order.
pub fn hello(settings: &Settings) -> [Vec<u8>; 3] {
    [
        text(TextMessage::Protocol, &from_page_table().to_string()),
        text(TextMessage::Protocol, &json!({ "Direction": 1 }).to_string()),
        initial_settings(settings),
    ]
}

/// The settings that a page shows, and begins with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Frames per second.
    pub fps: u32,
    /// The encoder's lowest bitrate, bits per second.
    pub min_bitrate: u64,
    /// The encoder's highest bitrate, bits per second.
    pub max_bitrate: u64,
}

/// The frame of [`TextMessage::InitialSettings`].
pub fn initial_settings(settings: &Settings) -> Vec<u8> {
    let json = json!({
        "PixelStreaming": { "AllowPixelStreamingCommands": false, "DisableLatencyTest": false },
        "Encoder": {
            "TargetBitrate": -1, "MaxBitrate": settings.max_bitrate, "MinQP": 0, "MaxQP": 51,
            "RateControl": "CBR", "FillerData": 0, "MultiPass": "DISABLED",
        },
        "WebRTC": {
            "DegradationPref": "MAINTAIN_FRAMERATE", "FPS": settings.fps,
            "MinBitrate": settings.min_bitrate, "MaxBitrate": settings.max_bitrate,
            "LowQP": 25, "HighQP": 37,
        },
        "ConfigOptions": {},
    });
    text(TextMessage::InitialSettings, &json.to_string())
}

/// The answer to a latency test: when it was received, and what the stages took, in milliseconds.
pub fn latency_answer(receipt_ms: u64, encode_ms: f64, capture_to_send_ms: f64) -> Vec<u8> {
    let json = json!({
        "ReceiptTimeMs": receipt_ms, "EncodeMs": encode_ms, "CaptureToSendMs": capture_to_send_ms,
        "TransmissionTimeMs": receipt_ms,
    });
    text(TextMessage::LatencyTest, &json.to_string())
}

/// The table of what the page may send, in the form that it reads.
fn from_page_table() -> Value {
    let mut table = Map::new();
    table.insert("Direction".to_owned(), json!(0));
    for (name, id, structure) in FROM_PAGE {
        table.insert((*name).to_owned(), json!({ "id": id, "structure": structure }));
    }
    Value::Object(table)
}

const FROM_PAGE: &[(&str, u8, &[&str])] = &[
    ("IFrameRequest", 0, &[]),
    ("RequestQualityControl", 1, &[]),
    ("FpsRequest", 2, &[]),
    ("AverageBitrateRequest", 3, &[]),
    ("StartStreaming", 4, &[]),
    ("StopStreaming", 5, &[]),
    ("LatencyTest", 6, &["string"]),
    ("RequestInitialSettings", 7, &[]),
    ("TestEcho", 8, &["string"]),
    ("UIInteraction", 50, &["string"]),
    ("Command", 51, &["string"]),
    ("TextboxEntry", 52, &["string"]),
    ("KeyDown", 60, &["uint8", "uint8"]),
    ("KeyUp", 61, &["uint8"]),
    ("KeyPress", 62, &["uint16"]),
    ("MouseEnter", 70, &[]),
    ("MouseLeave", 71, &[]),
    ("MouseDown", 72, &["uint8", "uint16", "uint16"]),
    ("MouseUp", 73, &["uint8", "uint16", "uint16"]),
    ("MouseMove", 74, &["uint16", "uint16", "int16", "int16"]),
    ("MouseWheel", 75, &["int16", "uint16", "uint16"]),
    ("MouseDouble", 76, &["uint8", "uint16", "uint16"]),
    (
        "TouchStart",
        80,
        &["uint8", "uint16", "uint16", "uint8", "uint8", "uint8"],
    ),
    (
        "TouchEnd",
        81,
        &["uint8", "uint16", "uint16", "uint8", "uint8", "uint8"],
    ),
    (
        "TouchMove",
        82,
        &["uint8", "uint16", "uint16", "uint8", "uint8", "uint8"],
    ),
    ("GamepadButtonPressed", 90, &["uint8", "uint8", "uint8"]),
    ("GamepadButtonReleased", 91, &["uint8", "uint8", "uint8"]),
    ("GamepadAnalog", 92, &["uint8", "uint8", "double"]),
    ("GamepadConnected", 93, &[]),
    ("GamepadDisconnected", 94, &["uint8"]),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_of_the_stock_page_are_understood() {
        let at = |x, y| Normalized { x, y };
        let seen: [(&[u8], FromPage); 12] = [
            (&[0x07], FromPage::RequestInitialSettings),
            (&[0x46], FromPage::MouseEnter),
            (
                &[0x4a, 0x00, 0x14, 0x8e, 0x23, 0, 0, 0, 0],
                FromPage::MouseMove {
                    at: at(0x1400, 0x238e),
                    delta: (0, 0),
                },
            ),
            (
                &[0x48, 0, 0, 0x40, 0, 0x40],
                FromPage::MouseDown {
                    button: 0,
                    at: at(0x4000, 0x4000),
                },
            ),
            (
                &[0x49, 2, 0, 0x40, 0, 0x40],
                FromPage::MouseUp {
                    button: 2,
                    at: at(0x4000, 0x4000),
                },
            ),
            (&[0x4c, 0, 0, 0x40, 0, 0x40], FromPage::MouseDouble),
            (
                &[0x4b, 0x78, 0, 0, 0x40, 0, 0x40],
                FromPage::MouseWheel {
                    delta: 120,
                    at: at(0x4000, 0x4000),
                },
            ),
            (
                &[0x3c, 0x41, 0],
                FromPage::KeyDown {
                    code: 65,
                    repeat: false,
                },
            ),
            (&[0x3e, 0x61, 0], FromPage::KeyPress { unit: 97 }),
            (&[0x3d, 0xfd], FromPage::KeyUp { code: 253 }),
            (
                &[0x50, 1, 0, 0x40, 0, 0x40, 0, 0xff, 1],
                FromPage::TouchStart(vec![Touch {
                    at: at(0x4000, 0x4000),
                    finger: 0,
                    valid: true,
                }]),
            ),
            (
                &[0x34, 2, 0, 0x68, 0, 0xe9, 0],
                FromPage::TextboxEntry("hé".to_owned()),
            ),
        ];
        for (frame, message) in seen {
            assert_eq!(parse(frame), Ok(message), "{frame:02x?}");
        }
    }

    #[test]
    fn cut_and_overlong_frames_are_named() {
        assert_eq!(parse(&[]), Err(BadFrame::Empty));
        assert_eq!(parse(&[200]), Err(BadFrame::Unknown(200)));
        assert_eq!(parse(&[60, 1]), Err(BadFrame::Length { id: 60, length: 2 }));
        assert_eq!(parse(&[60, 1, 0, 9]), Err(BadFrame::Length { id: 60, length: 4 }));
        assert_eq!(
            parse(&[51, 0xff, 0xff, 1]),
            Err(BadFrame::Length { id: 51, length: 4 })
        );
        assert_eq!(parse(&[51, 1, 0, 0x00, 0xd8]), Err(BadFrame::Text(51)));
        assert_eq!(parse(&[80, 255]), Err(BadFrame::Length { id: 80, length: 2 }));
        assert_eq!(
            parse(&vec![0; MAX_FRAME_BYTES + 1]),
            Err(BadFrame::TooLong(MAX_FRAME_BYTES + 1))
        );
    }

    #[test]
    fn the_table_names_exactly_what_is_read() {
        for (name, id, structure) in FROM_PAGE {
            let bytes: usize = structure
                .iter()
                .map(|field| match *field {
                    "uint8" => 1,
                    "uint16" | "int16" | "string" => 2,
                    "double" => 8,
                    other => panic!("{other}"),
                })
                .sum();
            // A touch message counts its fingers first; with none it has no fields.
            let body = if name.starts_with("Touch") { 1 } else { bytes };
            let frame: Vec<u8> = std::iter::once(*id).chain(std::iter::repeat_n(0, body)).collect();
            assert!(parse(&frame).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_hello_is_what_the_stock_streamer_says_first() {
        let settings = Settings {
            fps: 30,
            min_bitrate: 100_000,
            max_bitrate: 4_000_000,
        };
        let [table, empty, initial] = hello(&settings);
        assert_eq!(&table[..3], [255, b'{', 0]);
        assert_eq!(empty, text(TextMessage::Protocol, r#"{"Direction":1}"#));
        assert_eq!(initial[0], 7);
    }

    proptest! {
        #[test]
        fn no_frame_panics(frame: Vec<u8>) {
            let _ = parse(&frame);
        }

        #[test]
        fn a_text_comes_through(said in "\\PC{0,80}") {
            let units: Vec<u16> = said.encode_utf16().collect();
            let mut frame = vec![8];
            frame.extend((units.len() as u16).to_le_bytes());
            frame.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            prop_assert_eq!(parse(&frame), Ok(FromPage::TestEcho(said)));
        }
    }
}
