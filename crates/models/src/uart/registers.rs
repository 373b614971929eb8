//! The eight registers of a port, and their bits, as a guest's driver knows them.
//!
//! Offsets are in bytes from the start of the port's BAR. Names and numbers are those of
//! the PC16550D data sheet; a driver finds the same in `linux/serial_reg.h`.

/// Received byte (read), byte to send (write). With [`LCR_DLAB`] the divisor's low half.
pub const DATA: u64 = 0;
/// Interrupt enable. With [`LCR_DLAB`] the divisor's high half.
pub const IER: u64 = 1;
/// Interrupt identification (read).
pub const IIR: u64 = 2;
/// FIFO control (write).
pub const FCR: u64 = 2;
/// Line control.
pub const LCR: u64 = 3;
/// Modem control.
pub const MCR: u64 = 4;
/// Line status, read-only. Reading it clears [`LSR_OVERRUN`].
pub const LSR: u64 = 5;
/// Modem status, read-only. Reading it clears the lower four bits, which tell what
/// changed.
pub const MSR: u64 = 6;
/// A byte for the driver's own use.
pub const SCR: u64 = 7;

/// Received data is there.
pub const IER_DATA: u8 = 1 << 0;
/// The transmitter is empty.
pub const IER_EMPTY: u8 = 1 << 1;
/// Received data was lost.
pub const IER_LINE: u8 = 1 << 2;
/// The modem status changed.
pub const IER_MODEM: u8 = 1 << 3;

/// [`IIR`], lower four bits: no interrupt.
pub const IIR_NONE: u8 = 0x01;
/// Priority 1: [`LSR`] has an error. Gone when that is read.
pub const IIR_LINE: u8 = 0x06;
/// Priority 2: as many bytes as the trigger level asks for. Gone when fewer are left.
pub const IIR_DATA: u8 = 0x04;
/// Priority 2: fewer bytes, and no other came for the time of four. Gone when one is
/// read or comes.
pub const IIR_TIMEOUT: u8 = 0x0c;
/// Priority 3: the transmitter is empty. Gone when this is read, or a byte is written.
pub const IIR_EMPTY: u8 = 0x02;
/// Priority 4: [`MSR`] changed. Gone when that is read.
pub const IIR_MODEM: u8 = 0x00;
/// Upper two bits of [`IIR`]: the FIFO is on.
pub const IIR_FIFO: u8 = 0xc0;

/// The FIFO is on, with 16 bytes; off, it holds one.
pub const FCR_ENABLE: u8 = 1 << 0;
/// Empties the receiver. Not kept.
pub const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// Empties the transmitter. Not kept.
pub const FCR_CLEAR_TRANSMITTER: u8 = 1 << 2;
/// Two bits: the trigger level, one of 1, 4, 8, 14 bytes.
pub const FCR_TRIGGER: u8 = 0xc0;

/// The first two registers are the divisor.
pub const LCR_DLAB: u8 = 1 << 7;

/// Data terminal ready.
pub const MCR_DTR: u8 = 1 << 0;
/// Request to send.
pub const MCR_RTS: u8 = 1 << 1;
/// The first free output.
pub const MCR_OUT1: u8 = 1 << 2;
/// The second free output.
pub const MCR_OUT2: u8 = 1 << 3;
/// The modem's lines are this register's outputs.
pub const MCR_LOOP: u8 = 1 << 4;
/// Automatic flow control: the line says whether there is room.
pub const MCR_AFE: u8 = 1 << 5;

/// At least one byte is there.
pub const LSR_DATA: u8 = 1 << 0;
/// A byte was lost because there was no room.
pub const LSR_OVERRUN: u8 = 1 << 1;
/// The transmitter takes a byte.
pub const LSR_THR_EMPTY: u8 = 1 << 5;
/// The transmitter has nothing left.
pub const LSR_EMPTY: u8 = 1 << 6;

/// Clear to send.
pub const MSR_CTS: u8 = 1 << 4;
/// Data set ready.
pub const MSR_DSR: u8 = 1 << 5;
/// Ring.
pub const MSR_RI: u8 = 1 << 6;
/// Carrier.
pub const MSR_DCD: u8 = 1 << 7;
