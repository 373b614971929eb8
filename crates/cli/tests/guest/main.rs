//! The software guest as a whole: real device servers, real migrations over TCP, all in
//! one process, told what to do over control sockets.

#[cfg(test)]
mod again;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod migrations;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod strange;
#[cfg(test)]
mod token;
#[cfg(test)]
mod uarts;
