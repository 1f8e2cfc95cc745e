//! A scripted player.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::PATIENCE;

pub(crate) struct Player {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    notices: Vec<Value>,
}

impl Player {
    pub(crate) async fn connect(door: SocketAddr, path: &str) -> Self {
        let (socket, _) = connect_async(format!("ws://{door}{path}")).await.unwrap();
        let notices = Vec::new();
        Self { socket, notices }
    }

    /// With headers, as those whom a proxy or a browser sends have them. The status where it is not let in.
    pub(crate) async fn try_connect(
        door: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, u16> {
        let mut request = format!("ws://{door}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Self {
                socket,
                notices: Vec::new(),
            }),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn say(&mut self, message: Value) {
        self.say_text(&message.to_string()).await;
    }

    /// Whether it still gets through is for what comes next to show.
    pub(crate) async fn say_text(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text)).await;
    }

    pub(crate) async fn say_bytes(&mut self, bytes: &'static [u8]) {
        self.socket.send(Message::binary(bytes)).await.unwrap();
    }

    /// The next message that is not a notice.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            let message = self.any().await.expect("the socket is closed");
            if message["type"] != "matchmaker" {
                return message;
            }
        }
    }

    pub(crate) async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Waits until this very notice came.
    pub(crate) async fn notice(&mut self, notice: Value) {
        while !self.notices.contains(&notice) {
            self.any().await.expect("the socket is closed");
        }
    }

    pub(crate) fn last_notice(&self, status: &str) -> &Value {
        let found = self
            .notices
            .iter()
            .rev()
            .find(|notice| notice["status"] == status);
        found.unwrap_or_else(|| panic!("no {status} among {:?}", self.notices))
    }

    async fn any(&mut self) -> Result<Value, Option<u16>> {
        loop {
            let frame = timeout(PATIENCE, self.socket.next()).await.expect("nothing came");
            match frame {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    if message["type"] == "matchmaker" {
                        self.notices.push(message.clone());
                    }
                    return Ok(message);
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// The code that the socket is closed with.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.any().await {
                return code;
            }
        }
    }

    /// Sends one long message, listening all the while, and gives the close code.
    pub(crate) async fn shout(&mut self, length: usize) -> Option<u16> {
        let (mut out, mut back) = (&mut self.socket).split();
        let shout = async {
            let _ = out.send(Message::text("x".repeat(length))).await;
            std::future::pending::<()>().await;
        };
        let listen = async {
            loop {
                match back.next().await {
                    Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        tokio::select! {
            code = timeout(PATIENCE, listen) => code.expect("nothing came"),
            () = shout => None,
        }
    }

    pub(crate) async fn still_plays(&mut self) {
        self.say(json!({"type": "ping", "time": 1})).await;
        assert_eq!(self.next().await, json!({"type": "pong", "time": 1}));
        self.say(json!({"type": "answer", "sdp": "v=0"})).await;
        self.say(json!({"type": "ping", "time": 2})).await;
        assert_eq!(
            self.next().await,
            json!({"type": "pong", "time": 2}),
            "the answer had a streamer to go to"
        );
    }

    pub(crate) async fn leave(mut self) {
        self.socket.close(None).await.unwrap();
    }
}
