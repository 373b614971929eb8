//! The calls as they are given, for whoever tests a server.

use abi::feature::FeatureHeader;
use control::{Direction, Raw, TransportError};

use super::Client;
use crate::codec::Request;

/// An answer has this many bytes at most, whatever `argsz` says.
const MOST: usize = 4096;

impl Raw for Client {
    fn is_kernel(&self) -> bool {
        false
    }

    fn feature(
        &self,
        header: FeatureHeader,
        data: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        const OPERATION: &str = "call a feature";
        let mut answer = self.small(OPERATION, &Request::Feature(header, data), MOST)?;
        let behind = FeatureHeader::SIZE.min(answer.fixed.len());
        answer.fixed.drain(..behind);
        Ok(answer.fixed)
    }

    fn data(
        &self,
        direction: Direction,
        bytes: &mut [u8],
    ) -> Result<Option<usize>, TransportError> {
        match direction {
            Direction::Save => self.read_data(bytes),
            Direction::Resume => self.write_data(bytes),
        }
        .map(Some)
    }
}
