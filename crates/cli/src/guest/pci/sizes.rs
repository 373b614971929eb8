//! How a guest finds its BARs: what stays 0 of all ones is below the size.

use abi::pci::config;
use anyhow::{Result, bail};

use super::{Bar, read_u32};
use crate::guest::bus::Bus;

/// The bits of a memory BAR that say how wide it is.
const WIDTH: u32 = 3 << 1;

/// All BARs of a function whose decoding is off, without addresses.
pub(super) fn find(bus: &Bus, slot: usize) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    let mut number = 0;
    while number < config::BARS {
        let at = config::BAR0 + 4 * number;
        let kind = read_u32(bus, slot, at)?;
        let ports = kind & config::BAR_IO != 0;
        let wide = !ports && kind & WIDTH == config::BAR_MEMORY_64;
        if wide && number + 1 == config::BARS {
            bail!("its BAR{number} has 64 bits and no room for them");
        }
        let low = ones(bus, slot, at)?;
        let bytes = if ports {
            narrow(low & config::BAR_IO_MASK)
        } else if wide {
            let high = u64::from(ones(bus, slot, at + 4)?);
            let mask = high << 32 | u64::from(low & config::BAR_MEMORY_MASK);
            mask.wrapping_neg()
        } else {
            narrow(low & config::BAR_MEMORY_MASK)
        };
        if bytes > 0 && !bytes.is_power_of_two() {
            bail!("its BAR{number} has the size {bytes:#x}, which is no power of two");
        }
        if bytes > 0 {
            let number = number as u8;
            bars.push(Bar { number, ports, wide, bytes, base: 0, place: 0 });
        }
        number += if wide { 2 } else { 1 };
    }
    Ok(bars)
}

/// What a register keeps of all ones. It is left so: the address comes next.
fn ones(bus: &Bus, slot: usize, at: u16) -> Result<u32> {
    bus.config_write(slot, at, &u32::MAX.to_le_bytes())?;
    Ok(read_u32(bus, slot, at)?)
}

/// The size by the bits that can be set of a BAR of 32 bits; a port BAR may leave the
/// upper half out.
fn narrow(mask: u32) -> u64 {
    let mask = if mask != 0 && mask >> 16 == 0 { mask | 0xffff_0000 } else { mask };
    u64::from(mask.wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::narrow;

    #[test]
    fn the_size_of_a_bar_follows_from_what_it_keeps() {
        assert_eq!(narrow(0xffff_f000), 0x1000);
        assert_eq!(narrow(0xffff_fff8), 8);
        assert_eq!(narrow(0x0000_fff8), 8);
        assert_eq!(narrow(0x8000_0000), 1 << 31);
        assert_eq!(narrow(0), 0);
    }
}
