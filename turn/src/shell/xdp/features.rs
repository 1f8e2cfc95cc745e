//! What a driver's XDP can do, as the kernel says it: its generic netlink family `netdev`, from Linux 6.3 on
//! (`Documentation/netlink/specs/netdev.yaml`).

use std::io;

use rustix::fd::OwnedFd;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with, sockopt,
};

/// Whether the driver of an interface sends what XDP programs give it. A virtual pair's does while the other end takes
/// packets in as cards do: with a program of its own, or by GRO.
///
/// # Errors
/// Where the kernel does not say.
pub(super) fn sends(interface: u32) -> io::Result<bool> {
    let socket = open()?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let id = find(&family, CTRL_ATTR_FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
    let id = id.ok_or(io::ErrorKind::Unsupported)?;
    let index = attribute(NETDEV_A_DEV_IFINDEX, &interface.to_ne_bytes());
    let device = ask(&socket, id, NETDEV_CMD_DEV_GET, &index)?;
    let features = find(&device, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|features| Some(u64::from_ne_bytes(features.try_into().ok()?)));
    Ok(features.ok_or(io::ErrorKind::Unsupported)? & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

fn open() -> io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(GENERIC))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a command with one attribute, and gives the attributes of the answer.
fn ask(socket: &OwnedFd, family: u16, command: u8, attribute: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADERS_LEN + attribute.len();
    let mut request = Vec::with_capacity(length);
    request.extend(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one request is under way at a time.
    request.extend([0; 8]);
    request.extend([command, GENL_VERSION, 0, 0]);
    request.extend(attribute);
    sendto(
        socket,
        &request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = vec![0; ANSWER_BYTES];
    let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
    answer.truncate(length);
    match answer.get(4..6) {
        Some(kind) if kind == family.to_ne_bytes() && length >= HEADERS_LEN => {
            Ok(answer.split_off(HEADERS_LEN))
        }
        // It is an error, whose number is of no use to us.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_HEAD_LEN + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((head, _)) = attributes.split_first_chunk::<ATTRIBUTE_HEAD_LEN>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = attributes.get(ATTRIBUTE_HEAD_LEN..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The kernel answers while it is asked.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
const ANSWER_BYTES: usize = 8192;
/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS_LEN: usize = 16 + 4;
/// `struct nlattr`.
const ATTRIBUTE_HEAD_LEN: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const GENL_ID_CTRL: u16 = 0x10;
const GENL_VERSION: u8 = 1;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let all = [attribute(7, b"odd"), attribute(3, &5_u64.to_ne_bytes())].concat();
        assert_eq!(find(&all, 3), Some(&5_u64.to_ne_bytes()[..]));
        assert_eq!(find(&all, 7), Some(&b"odd"[..]));
        assert_eq!(find(&all, 1), None);
    }

    #[test]
    fn what_is_cut_or_claims_no_length_ends_the_search() {
        let all = [attribute(7, b"odd"), attribute(3, &5_u64.to_ne_bytes())].concat();
        for length in 0..all.len() {
            assert_eq!(find(&all[..length], 3), None);
        }
        assert_eq!(find(&[0; 64], 3), None);
    }
}
