//! Our server, against all rows.

mod answers;
mod data;
mod dma;
mod features;
mod header;
mod irqs;
mod matrix;
mod multi;
mod regions;
mod setup;
mod twin;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use states::v2::State;
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::ServerOptions;

use super::device::Device;
use super::row::{DEFECTS, Fd, Link, Row, Wish};
use super::support::Served;
use super::valid;
use super::wire::Wire;

fn rows() -> Vec<Row> {
    [
        matrix::rows(),
        header::rows(),
        setup::rows(),
        dma::rows(),
        regions::rows(),
        multi::rows(),
        irqs::rows(),
        features::rows(),
        data::rows(),
        twin::rows(),
        answers::rows(),
    ]
    .concat()
}

/// One server, the connection to it, and what goes with messages.
struct Table {
    served: Served,
    wire: Option<(Link, Wire)>,
    /// Twin sockets, which have to live as long as the connection.
    twins: Vec<OwnedFd>,
    next_id: u16,
    events: [EventFd; 2],
    memory: SharedMemory,
    file: std::fs::File,
}

impl Table {
    fn new() -> Table {
        let options = ServerOptions {
            max_data_xfer_size: valid::MOST as usize,
            ..ServerOptions::default()
        };
        Table {
            served: Served::with(Device::new(), options),
            wire: None,
            twins: Vec::new(),
            next_id: 0,
            events: [EventFd::new().unwrap(), EventFd::new().unwrap()],
            memory: SharedMemory::create("guest", 1 << 20).unwrap(),
            file: tempfile::tempfile().unwrap(),
        }
    }

    /// A connection of that kind: the one there is, where it will do.
    fn link(&mut self, link: Link) -> Result<(), String> {
        if let Some((there, _)) = &self.wire
            && *there == link
            && link != Link::Fresh
        {
            return Ok(());
        }
        // The server takes one client at a time.
        self.wire = None;
        self.twins.clear();
        self.wire = Some((link, Wire::connect(&self.served.path())));
        match link {
            Link::Ours => self.exchange(&valid::version()),
            Link::Foreign => {
                self.exchange(&valid::version_saying(r#"{"capabilities":{}}"#))
            }
            Link::Fresh => Ok(()),
        }
    }

    /// Sends one message and looks at what comes back.
    fn exchange(&mut self, row: &Row) -> Result<(), String> {
        let (_, wire) = self.wire.as_ref().ok_or("there is no connection")?;
        self.next_id = self.next_id.wrapping_add(1);
        let id = match &row.asked {
            None => self.next_id,
            Some((command, body)) => {
                let got = wire.receive()?;
                if (got.command, got.flags, &got.body) != (*command, 0, body) {
                    return Err(format!("asked {}: {:x?}", got.command, got.body));
                }
                got.id.wrapping_add(row.off)
            }
        };
        let fds: Vec<BorrowedFd<'_>> = row
            .fds
            .iter()
            .map(|fd| match fd {
                Fd::Event(n) => self.events[*n].as_fd(),
                Fd::Memory => self.memory.fd(),
                Fd::File => self.file.as_fd(),
            })
            .collect();
        let sent = wire.send(&row.message(id).bytes(), &fds);
        if let Wish::End(errno) = &row.wish {
            if errno.is_some() {
                row.check(id, &wire.receive()?)?;
            }
            return wire.ended();
        }
        sent?;
        if row.wish == Wish::Silence {
            return Ok(());
        }
        let got = wire.receive()?;
        row.check(id, &got)?;
        if row.command == 1 {
            self.twins.extend(got.fds);
        }
        Ok(())
    }

    /// Runs a row, and puts everything back.
    fn run(&mut self, row: &Row) -> Result<(), String> {
        self.link(row.link)?;
        for given in &row.given {
            self.exchange(given).map_err(|error| format!("before it: {error}"))?;
        }
        self.exchange(row)?;
        if let Some(event) = row.signals {
            self.events[event].signal(1).map_err(|error| error.to_string())?;
        }
        if matches!(row.wish, Wish::End(_)) {
            self.wire = None;
            self.link(Link::Ours).map_err(|error| format!("the next client: {error}"))?;
        }
        for then in &row.then {
            self.exchange(then).map_err(|error| {
                format!("then {} {}: {error}", then.command, then.what)
            })?;
        }
        if self.wire.as_ref().is_some_and(|(link, _)| *link == Link::Fresh)
            && !row.agrees()
        {
            self.exchange(&valid::version())
                .map_err(|error| format!("VERSION afterwards: {error}"))?;
        }
        self.exchange(&valid::region_read())
            .map_err(|error| format!("the next command: {error}"))?;
        let fired = self.fired(row.fires);
        self.clean().map_err(|error| format!("cleaning up: {error}"))?;
        if fired != row.fires {
            return Err(format!("interrupts {fired:?}, not {:?}", row.fires));
        }
        Ok(())
    }

    /// How often the eventfds fired. What the client signals reaches the server by
    /// another way than its messages, so there is a little time for that.
    fn fired(&self, wanted: [u64; 2]) -> [u64; 2] {
        let mut fired = [0; 2];
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            for (fired, event) in fired.iter_mut().zip(&self.events) {
                *fired += event.take().unwrap_or(0);
            }
            if fired == wanted || Instant::now() > end {
                return fired;
            }
            std::thread::yield_now();
        }
    }

    /// How many descriptors lead to each of what went with the messages, and how many
    /// connections the server has. Other tests have descriptors at the same time.
    fn left(&self) -> ([usize; 4], usize) {
        let [first, second] = &self.events;
        let ours = [first.as_fd(), second.as_fd(), self.memory.fd(), self.file.as_fd()];
        let ours = ours.map(|fd| identity(&fd.as_raw_fd().to_string()));
        let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
            let name = entry.ok()?.file_name();
            Some(identity(name.to_str()?))
        });
        let all: Vec<_> = all.collect();
        let copies = ours.map(|one| all.iter().filter(|other| **other == one).count());
        // The listener has the same name.
        let path = self.served.path().display().to_string();
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        (copies, sockets.lines().filter(|line| line.ends_with(&path)).count() - 1)
    }

    /// The device as it was, and nothing of a row left.
    fn clean(&mut self) -> Result<(), String> {
        let unmap_all = valid::dma_unmap().u32(4, 2).u64(8, 0).u64(16, 0);
        let unbind = valid::act(valid::NONE | valid::TRIGGER).u32(12, 0).u32(16, 0);
        let mut rows: Vec<Row> =
            (0..valid::IRQS).map(|index| unbind.clone().u32(8, index)).collect();
        rows.extend([
            unmap_all.answer(24),
            valid::log_stop(),
            valid::reset(),
            valid::is_in(valid::RUNNING),
        ]);
        for row in rows {
            self.exchange(&row)
                .map_err(|error| format!("command {}: {error}", row.command))?;
        }
        Ok(())
    }
}

/// What a descriptor of this process leads to. All eventfds are one inode, but each has
/// a number.
fn identity(fd: &str) -> Option<(u64, String)> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?.ino();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let number = info.lines().find(|line| line.starts_with("eventfd-id"));
    Some((inode, number.unwrap_or_default().to_owned()))
}

#[test]
fn every_command_with_everything_wrong_about_it_is_answered_as_documented() {
    let mut table = Table::new();
    let rows = rows();
    let mut failed = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        if let Err(error) = table.run(row) {
            let Row { command, defect, what, .. } = row;
            failed.push(format!("{n:4} command {command:5} {defect:?}: {what}: {error}"));
            // The next row starts anew.
            table.wire = None;
            let again = table.link(Link::Ours).and_then(|()| table.clean());
            if let Err(error) = again {
                failed.push(format!("     and nobody is served any more: {error}"));
                break;
            }
            for event in &table.events {
                let _ = event.take();
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        rows.len(),
        failed.join("\n")
    );
    assert_eq!(table.left(), ([1; 4], 1), "descriptors or connections are left over");
    table.wire = None;
    let server = table.served.stop();
    assert_eq!(server.runner().state(), State::Running);
    assert_eq!(server.runner().outstanding(), 0);
}

#[test]
fn the_table_has_every_command_and_every_kind_of_defect() {
    let rows = rows();
    assert!(rows.len() >= 1000, "{} rows", rows.len());
    let commands: BTreeSet<u16> = rows.iter().map(|row| row.command).collect();
    for command in (0..=19).chain([65535]) {
        assert!(commands.contains(&command), "no row of command {command}");
    }
    for defect in DEFECTS {
        assert!(rows.iter().any(|row| row.defect == defect), "no row of {defect:?}");
    }
    // Each kind is tried on each command that can have it.
    use super::row::Defect::{
        BeforeVersion, Empty, Flags, Long, ManyFds, NoReply, Reply, Short, Size,
        StrayFds, Twice, Type, Valid,
    };
    for command in 2..=18 {
        for defect in [
            Valid,
            Long,
            Type,
            Reply,
            Flags,
            NoReply,
            ManyFds,
            BeforeVersion,
            Size,
            Twice,
        ] {
            let there =
                rows.iter().any(|row| (row.command, row.defect) == (command, defect));
            assert!(there, "no row of command {command} with {defect:?}");
        }
        let takes_fds = matches!(command, 2 | 8);
        let has_body = !matches!(command, 13 | 14);
        for (defect, applies) in
            [(Short, has_body), (Empty, has_body), (StrayFds, !takes_fds)]
        {
            let there =
                rows.iter().any(|row| (row.command, row.defect) == (command, defect));
            assert!(there || !applies, "no row of command {command} with {defect:?}");
        }
    }
    let mut names = BTreeSet::new();
    let twice: Vec<_> = rows
        .iter()
        .map(|row| (row.command, row.defect, &row.what))
        .filter(|name| name.2.is_empty() || !names.insert(*name))
        .collect();
    assert!(twice.is_empty(), "rows of one name, or of none: {twice:#?}");
}
