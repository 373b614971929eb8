//! Links over real sockets: what must hold when the other side misbehaves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use port::{Accept, Channel, ChannelError, Close, Dial, Receive, Transmit};
use vfio_migrate_link::{Connection, LinkError, Listener, RateLimit, Uri, dial, listen};

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

type Ends = (Box<dyn Transmit>, Box<dyn Receive>, Box<dyn Close>);

fn split(connection: impl Channel + 'static) -> Ends {
    Box::new(connection).split().unwrap()
}

fn tcp() -> Listener {
    listen(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap()
}

fn pair() -> (Ends, Ends) {
    let listener = tcp();
    let (here, _) = dial(listener.local(), LONG).unwrap();
    let (there, _) = listener.accept(LONG).unwrap();
    (split(here), split(there))
}

#[test]
fn every_part_arrives_in_order_however_many_there_are() {
    let ((mut transmit, ..), (_, mut receive, _)) = pair();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        // Far more parts than one system call takes, some of them empty.
        let parts: Vec<IoSlice<'_>> = sent
            .chunks(1009)
            .flat_map(|part| [IoSlice::new(part), IoSlice::new(&[])])
            .collect();
        transmit.send(&parts).unwrap();
        transmit
    });
    let mut heard = vec![0; bytes.len()];
    receive.receive(&mut heard).unwrap();
    assert!(heard == bytes);
    sender.join().unwrap();
}

#[test]
fn data_connections_reach_the_same_peer() {
    let listener = tcp();
    let (_control, mut dialer) = dial(listener.local(), LONG).unwrap();
    let (_taken, mut acceptor) = listener.accept(LONG).unwrap();
    for n in 0..3u8 {
        let (mut transmit, ..) = dialer.dial(LONG).unwrap().split().unwrap();
        let (_, mut receive, _) = acceptor.accept(LONG).unwrap().split().unwrap();
        transmit.send(&[IoSlice::new(&[n])]).unwrap();
        let mut heard = [9];
        receive.receive(&mut heard).unwrap();
        assert_eq!(heard, [n]);
    }
}

#[test]
fn a_peer_that_closes_in_the_middle_is_not_waited_for() {
    let ((mut transmit, receive, _), (_, mut heard, _)) = pair();
    transmit.send(&[IoSlice::new(b"half")]).unwrap();
    drop((transmit, receive));
    let result = heard.receive(&mut [0; 8]);
    assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
}

#[test]
fn sending_to_a_peer_that_is_gone_ends() {
    let ((mut transmit, ..), there) = pair();
    drop(there);
    let block = vec![1; 1 << 20];
    let result = (0..64).try_for_each(|_| transmit.send(&[IoSlice::new(&block)]));
    assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
}

#[test]
fn a_silent_peer_does_not_hang_a_receiver() {
    let ((_transmit, mut receive, _), _there) = pair();
    receive.set_deadline(SOON);
    let before = Instant::now();
    let result = receive.receive(&mut [0; 1]);
    assert!(matches!(result, Err(ChannelError::TimedOut(50))), "{result:?}");
    assert!(before.elapsed() >= SOON && before.elapsed() < LONG);
}

#[test]
fn a_peer_that_does_not_read_does_not_hang_a_sender() {
    let ((mut transmit, ..), _there) = pair();
    transmit.set_deadline(SOON);
    let block = vec![1; 1 << 20];
    let result = (0..256).try_for_each(|_| transmit.send(&[IoSlice::new(&block)]));
    assert!(matches!(result, Err(ChannelError::TimedOut(50))), "{result:?}");
}

#[test]
fn a_deadline_of_nothing_is_not_a_deadline_of_for_ever() {
    let ((_transmit, mut receive, _), _there) = pair();
    receive.set_deadline(Duration::ZERO);
    assert!(matches!(receive.receive(&mut [0; 1]), Err(ChannelError::TimedOut(0))));
    receive.set_deadline(Duration::MAX);
    assert!(receive.receive(&mut []).is_ok());
}

#[test]
fn close_wakes_a_receiver_that_waits() {
    let ((_transmit, mut receive, close), _there) = pair();
    receive.set_deadline(LONG);
    let (tell, told) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        tell.send(()).unwrap();
        receive.receive(&mut [0; 1])
    });
    told.recv().unwrap();
    close.close();
    let result = waiting.join().unwrap();
    assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
    close.close();
}

#[test]
fn close_wakes_a_sender_that_waits() {
    let ((mut transmit, _receive, close), _there) = pair();
    transmit.set_deadline(LONG);
    let (tell, told) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        tell.send(()).unwrap();
        let block = vec![1; 1 << 20];
        (0..256).try_for_each(|_| transmit.send(&[IoSlice::new(&block)]))
    });
    told.recv().unwrap();
    close.close();
    let result = waiting.join().unwrap();
    assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
}

#[test]
fn a_port_where_nothing_listens_is_named() {
    let listener = tcp();
    let place = listener.local().clone();
    drop(listener);
    let error = dial(&place, LONG).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, LinkError::NobodyListens { .. }), "{error:?}");
    assert_eq!(text, format!("nothing listens at {place}: start the destination first"));
}

#[test]
fn a_host_that_nobody_knows_is_named() {
    let place: Uri = "tcp:host.invalid:7600".parse().unwrap();
    let error = dial(&place, LONG).unwrap_err();
    assert_eq!(error.to_string(), "cannot find the host `host.invalid`");
}

#[test]
fn a_place_that_is_taken_is_named() {
    let listener = tcp();
    let error = listen(listener.local()).unwrap_err().to_string();
    let told = format!("cannot listen at {}: it is taken", listener.local());
    assert!(error.starts_with(&told), "{error}");
}

#[test]
fn nobody_comes() {
    let result = tcp().accept(SOON);
    assert!(matches!(result, Err(ChannelError::TimedOut(50))), "{result:?}");
}

#[test]
fn a_listener_goes_on_after_a_stranger() {
    let listener = tcp();
    let address = ("127.0.0.1", listener.local().port().unwrap());
    drop(TcpStream::connect(address).unwrap());
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let (here, _) = dial(listener.local(), LONG).unwrap();
    let (mut transmit, ..) = split(here);
    transmit.send(&[IoSlice::new(b"migr")]).unwrap();
    let mut found = false;
    for _ in 0..3 {
        let (connection, _) = listener.accept(LONG).unwrap();
        let (_, mut receive, _) = split(connection);
        let mut first = [0; 4];
        found |= receive.receive(&mut first).is_ok() && &first == b"migr";
    }
    assert!(found);
}

#[test]
fn a_unix_socket_links_too_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link");
    let place = Uri::unix(&path).unwrap();
    assert!(matches!(dial(&place, LONG), Err(LinkError::NobodyListens { .. })));
    let listener = listen(&place).unwrap();
    let (here, mut dialer) = dial(&place, LONG).unwrap();
    let (there, mut acceptor) = listener.accept(LONG).unwrap();
    let _more = (dialer.dial(LONG).unwrap(), acceptor.accept(LONG).unwrap());
    let (mut transmit, ..) = split(here);
    let (_, mut receive, _) = split(there);
    transmit.send(&[IoSlice::new(b"hello")]).unwrap();
    let mut heard = [0; 5];
    receive.receive(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    drop((listener, acceptor));
    assert!(!path.exists());
}

#[test]
fn a_full_queue_does_not_hang_a_unix_dialer() {
    let folder = tempfile::tempdir().unwrap();
    let place = Uri::unix(folder.path().join("link")).unwrap();
    let _listener = listen(&place).unwrap();
    let mut taken = Vec::new();
    // The queue of a listener of the standard library takes at most 4096.
    let error = (0..5000)
        .find_map(|_| match dial(&place, SOON) {
            Ok((connection, _)) => {
                taken.push(connection);
                None
            }
            Err(error) => Some(error),
        })
        .unwrap();
    assert!(matches!(error, LinkError::Connect { .. }), "{error:?}");
}

#[test]
fn a_stream_that_a_vmm_brings_is_a_channel() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (mut transmit, mut receive, _) = split(Connection::from(ours));
    transmit.send(&[IoSlice::new(b"ab")]).unwrap();
    let mut heard = [0; 2];
    theirs.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"ab");
    theirs.write_all(b"cd").unwrap();
    receive.receive(&mut heard).unwrap();
    assert_eq!(&heard, b"cd");
}

#[test]
fn a_socket_that_a_dead_process_left_bars_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link");
    let place = Uri::unix(&path).unwrap();
    // It is bound and never removed, as by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = listen(&place).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&path).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // One that lives, and what is no socket, are left alone.
    let error = listen(&place).unwrap_err().to_string();
    assert!(error.contains("it is taken"), "{error}");
    drop(listener);
    assert!(!path.exists());
    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(listen(&place), Err(LinkError::InTheWay { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// Data connections that share a limit, and what hears them.
fn limited(count: usize, limit: &RateLimit) -> (Vec<Ends>, Vec<Ends>) {
    let listener = tcp();
    let (_control, dialer) = dial(listener.local(), LONG).unwrap();
    let (_taken, mut acceptor) = listener.accept(LONG).unwrap();
    let mut dialer = dialer.limited(limit);
    (0..count)
        .map(|_| {
            let here = dialer.dial(LONG).unwrap().split().unwrap();
            (here, acceptor.accept(LONG).unwrap().split().unwrap())
        })
        .unzip()
}

#[test]
fn data_connections_together_are_faster_than_their_limit() {
    let limit = RateLimit::new(Some(4_000_000));
    let (near, far) = limited(3, &limit);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (mut transmit, ..) in near {
            scope.spawn(move || {
                let (head, block) = ([7; 24], vec![1; 400_000]);
                transmit.send(&[IoSlice::new(&head), IoSlice::new(&block)]).unwrap();
                transmit
            });
        }
        for (_, mut receive, _) in far {
            scope.spawn(move || {
                let mut all = vec![0; 400_024];
                receive.receive(&mut all).unwrap();
                assert!(all[..24] == [7; 24] && all[24..].iter().all(|one| *one == 1));
            });
        }
    });
    // 1.2 MB at 4 MB/s are 300 ms, less the 50 ms of the first turn.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(249) && took < LONG, "{took:?}");
}

#[test]
fn waiting_for_a_turn_is_taken_for_a_peer_that_does_not_read() {
    let (mut near, mut far) = limited(1, &RateLimit::new(Some(RateLimit::LEAST)));
    let ((mut transmit, ..), (_, mut receive, _)) = (near.remove(0), far.remove(0));
    transmit.set_deadline(SOON);
    let sender = std::thread::spawn(move || {
        let block = [1; 16 << 10];
        let result = transmit.send(&[IoSlice::new(&block)]);
        (result, transmit)
    });
    receive.receive(&mut [0; 16 << 10]).unwrap();
    sender.join().unwrap().0.unwrap();
}

#[test]
fn close_wakes_a_sender_that_waits_for_its_turn() {
    let (mut near, _far) = limited(1, &RateLimit::new(Some(RateLimit::LEAST)));
    let (mut transmit, _receive, close) = near.remove(0);
    let before = Instant::now();
    let sender = std::thread::spawn(move || {
        let block = vec![1; 4 << 20]; // a minute's worth
        transmit.send(&[IoSlice::new(&block)])
    });
    close.close();
    let result = sender.join().unwrap();
    assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
    assert!(before.elapsed() < LONG);
}

#[test]
fn a_limit_that_is_taken_away_goes_on() {
    let limit = RateLimit::new(Some(RateLimit::LEAST));
    let (mut near, mut far) = limited(1, &limit);
    let ((mut transmit, ..), (_, mut receive, _)) = (near.remove(0), far.remove(0));
    let before = Instant::now();
    let sender = std::thread::spawn(move || {
        let block = vec![1; 4 << 20]; // a minute's worth
        transmit.send(&[IoSlice::new(&block)]).unwrap();
        transmit
    });
    receive.receive(&mut [0; 1000]).unwrap();
    limit.set(None);
    let mut rest = vec![0; (4 << 20) - 1000];
    receive.receive(&mut rest).unwrap();
    sender.join().unwrap();
    assert!(before.elapsed() < LONG);
}
