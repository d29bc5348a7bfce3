//! Interfaces: listing, making and deleting them, setting them up.

use crate::{
    attr::Writer,
    error::Error,
    message::{Message, flags},
    rtnetlink::{link as uapi, message as kind},
    socket::{Dump, Socket},
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: Box<str>,
    /// `IFF_*`.
    pub flags: u32,
    /// The driver's kind where it is a virtual one: `dummy`, `veth`, `bridge`.
    pub kind: Option<Box<str>>,
    /// The bridge (or bond) this is a port of.
    pub master: Option<u32>,
}

impl Link {
    /// Whether it is set up (`IFF_UP`).
    pub const fn is_up(&self) -> bool {
        self.flags & uapi::UP != 0
    }

    fn decode(message: &Message<'_>) -> Option<Self> {
        (message.kind == kind::NEW_LINK).then(|| Self::parse(message)).flatten()
    }

    /// Of news as of a list.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let &[_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = message.payload else { return None };
        let attributes = message.attributes(uapi::HEADER);
        Some(Self {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            name: attributes.get(uapi::NAME)?.str()?.into(),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            kind: attributes
                .get(uapi::INFO)
                .and_then(|info| info.nested().get(uapi::INFO_KIND))
                .and_then(|kind| Some(kind.str()?.into())),
            master: attributes.get(uapi::MASTER).and_then(|master| master.u32()),
        })
    }
}

/// All interfaces of the namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut links = Vec::new();
    // An interface that comes or goes meanwhile is announced to a monitor, which then makes us look again.
    let (Dump::Complete | Dump::Interrupted) = socket.dump(
        kind::GET_LINK,
        |writer| header(writer, 0, 0, 0),
        |message| links.extend(Link::decode(message)),
    )?;
    Ok(links)
}

/// The interface of this name, if there is one.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let fill = |writer: &mut Writer| {
        header(writer, 0, 0, 0);
        writer.str(uapi::NAME, name);
    };
    match socket.ask(kind::GET_LINK, 0, fill, Link::decode) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.refused() == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an interface of a kind that needs no parameters (`dummy`, `bridge`); `EEXIST` if the name is taken.
pub fn create(socket: &mut Socket, name: &str, kind: &str) -> Result<(), Error> {
    socket.request(kind::NEW_LINK, flags::CREATE | flags::EXCLUSIVE, |writer| {
        header(writer, 0, 0, 0);
        writer.str(uapi::NAME, name);
        writer.nest(uapi::INFO, |info| info.str(uapi::INFO_KIND, kind));
    })
}

/// Deletes an interface; `ENODEV` if there is none.
pub fn delete(socket: &mut Socket, index: u32) -> Result<(), Error> {
    socket.request(kind::DELETE_LINK, 0, |writer| header(writer, index, 0, 0))
}

/// Sets an interface up.
pub fn set_up(socket: &mut Socket, index: u32) -> Result<(), Error> {
    socket.request(kind::NEW_LINK, 0, |writer| header(writer, index, uapi::UP, uapi::UP))
}

fn header(writer: &mut Writer, index: u32, flags: u32, change: u32) {
    writer.raw(&[0; 4]);
    writer.raw(&index.to_ne_bytes());
    writer.raw(&flags.to_ne_bytes());
    writer.raw(&change.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_payload_is_decoded_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: kind::NEW_LINK, flags: 0, sequence: 0, payload: &payload };
            let _ = Link::decode(&message);
        }
    }
}
