//! What the guest counts of its bus, for whoever asks while it works.

use control::pci::InterruptMode;
use serde_json::{Value, json};

use super::board::Board;
use super::device::Device;

/// Of one device.
pub(super) fn device(board: &Board, device: &Device) -> Value {
    let heard = board.controller.heard(device.number);
    let (masks, moves) = device.masks_and_moves();
    json!({
        "interrupts": name(board.bus.function(device.number).mode()),
        "handled": heard.handled,
        "acknowledged": heard.acknowledged,
        "masks": masks,
        "moves": moves,
    })
}

/// Of all devices: interrupts by kind, masks, moves.
pub(super) fn all(board: &Board) -> (Value, u64, u64) {
    let mut kinds = json!({ "intx": 0, "msi": 0, "msix": 0 });
    let (mut masks, mut moves) = (0, 0);
    for device in &board.devices {
        let heard = board.controller.heard(device.number);
        let mode = board.bus.function(device.number).mode();
        let came = match mode {
            InterruptMode::Intx => heard.acknowledged,
            _ => heard.handled.iter().sum(),
        };
        if let Some(name) = name(mode) {
            kinds[name] = (kinds[name].as_u64().unwrap_or(0) + came).into();
        }
        let own = device.masks_and_moves();
        masks += own.0;
        moves += own.1;
    }
    (kinds, masks, moves)
}

fn name(mode: InterruptMode) -> Option<&'static str> {
    match mode {
        InterruptMode::Off => None,
        InterruptMode::Intx => Some("intx"),
        InterruptMode::Msi => Some("msi"),
        InterruptMode::Msix => Some("msix"),
    }
}
