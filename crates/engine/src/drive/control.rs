//! The control connection: messages both ways.

use std::io::IoSlice;
use std::time::Duration;

use port::{Receive, Transmit};
use wire::preamble::{PageSize, Preamble, Role};
use wire::{Decoder, Encoder, Frame, Header, Message};

use super::tracker::chain;
use crate::migration::Cause;

/// The sending half.
pub(super) struct Speaker {
    transmit: Box<dyn Transmit>,
    encoder: Encoder,
}

impl Speaker {
    /// Says the preamble; messages follow.
    pub(super) fn open(
        mut transmit: Box<dyn Transmit>,
        preamble: &Preamble,
        patience: Duration,
    ) -> Result<Speaker, Cause> {
        transmit.set_deadline(patience);
        let bytes = preamble.encode();
        transmit
            .send(&[IoSlice::new(&bytes)])
            .map_err(|error| Cause::Channel(chain(&error)))?;
        Ok(Speaker { transmit, encoder: Encoder::new(Role::Control) })
    }

    /// Says one thing.
    pub(super) fn say(&mut self, message: &Message) -> Result<(), Cause> {
        tracing::debug!(message = %message.kind(), "say");
        let frame = self
            .encoder
            .message(message)
            .map_err(|error| Cause::Protocol(chain(&error)))?;
        self.transmit
            .send(&[IoSlice::new(&frame)])
            .map_err(|error| Cause::Channel(chain(&error)))
    }
}

/// The receiving half.
pub(super) struct Listener {
    receive: Box<dyn Receive>,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// Silence on the control connection is normal: each wait for an answer has a deadline
/// of its own, in the step. This only bounds a thread that nobody would end.
const SILENCE: Duration = Duration::from_secs(24 * 60 * 60);

impl Listener {
    /// Reads the peer's preamble, within `patience`.
    pub(super) fn preamble(
        receive: &mut dyn Receive,
        patience: Duration,
    ) -> Result<[u8; Preamble::SIZE], Cause> {
        receive.set_deadline(patience);
        let mut bytes = [0; Preamble::SIZE];
        receive.receive(&mut bytes).map_err(|error| Cause::Channel(chain(&error)))?;
        Ok(bytes)
    }

    /// Listens to a connection whose preamble was read.
    pub(super) fn new(mut receive: Box<dyn Receive>, page: PageSize) -> Listener {
        receive.set_deadline(SILENCE);
        Listener {
            receive,
            decoder: Decoder::new(Role::Control, page),
            buffer: Vec::new(),
        }
    }

    /// Hears one thing.
    pub(super) fn hear(&mut self) -> Result<Message, Cause> {
        loop {
            let mut head = [0; Header::SIZE];
            self.receive
                .receive(&mut head)
                .map_err(|error| Cause::Channel(chain(&error)))?;
            let header = self
                .decoder
                .header(&head)
                .map_err(|error| Cause::Protocol(chain(&error)))?;
            // The decoder compared the length with the ceiling of its type.
            self.buffer.resize(header.length as usize, 0);
            self.receive
                .receive(&mut self.buffer)
                .map_err(|error| Cause::Channel(chain(&error)))?;
            let frame = self.decoder.payload(&header, &self.buffer);
            match frame.map_err(|error| Cause::Protocol(chain(&error)))? {
                Frame::Message(message) => {
                    tracing::debug!(message = %message.kind(), "hear");
                    return Ok(message);
                }
                Frame::Skipped(_) => {}
                other => {
                    return Err(Cause::Protocol(format!(
                        "a frame on the control connection that does not belong there: \
                         {other:?}"
                    )));
                }
            }
        }
    }
}
