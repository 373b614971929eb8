//! The loopback network, which nobody else brings up here.

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

use crate::said;

/// A change of an interface (`RTM_NEWLINK`), to be answered (`NLM_F_REQUEST`,
/// `NLM_F_ACK`).
const NEW_LINK: u16 = 16;
const REQUEST_AND_ACK: u16 = 1 | 4;
/// Loopback is the first interface that a kernel makes.
const INDEX: u32 = 1;
/// `IFF_UP`.
const UP: u32 = 1;

/// Brings it up; with that it has its address.
pub(super) fn up() -> Result<(), String> {
    let failed = || said("the loopback network");
    let flags = SocketFlags::CLOEXEC;
    // Netlink's protocol 0 is about interfaces and routes.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .map_err(failed())?;
    // struct nlmsghdr: length, type and flags, sequence, port; struct ifinfomsg: family
    // and type, index, flags, which flags change.
    let kind = u32::from(NEW_LINK) | u32::from(REQUEST_AND_ACK) << 16;
    let words = [32, kind, 1, 0, 0, INDEX, UP, UP];
    let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    sendto(&socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        .map_err(failed())?;
    let mut answer = [0_u8; 256];
    let (bytes, _) = recv(&socket, &mut answer, RecvFlags::empty()).map_err(failed())?;
    // struct nlmsgerr behind a header: 0, or a negative errno.
    match answer[..bytes].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(()),
        other => Err(format!("the loopback network: {other:?}")),
    }
}
