//! What `compat` promises is what a migration and a restore do.

mod stage;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use control::Transport;
use device::front::{FrontOptions, Generation};
use device::{Migratable, Runner};
use models::accel::{self, Accel};
use models::uart::{self, Uart};
use serde_json::Value;
use stage::alone::Alone;
use stage::{Ended, Guest, Machine, Process, run};
use sys::socket::Listener;
use vfio_user::client::{Client, ClientOptions, NoDma};
use vfio_user::server::{Server, ServerOptions, Stop};
use wire::preamble::{Architecture, ByteOrder, Preamble};

fn compat(source: &str, destinations: &[&str]) -> Ended {
    run(&[&["compat", "--json", source][..], destinations].concat())
}

/// The fields that do not fit.
fn unfit(answer: &Value) -> Vec<&str> {
    let fields = answer["fields"].as_array().expect("fields");
    let unfit = fields.iter().filter(|field| field["fits"] == false);
    unfit.map(|field| field["field"].as_str().expect("a name")).collect()
}

fn reasons(answer: &Value) -> Vec<&str> {
    let reasons = answer["reasons"].as_array().expect("reasons");
    reasons.iter().map(|reason| reason.as_str().expect("text")).collect()
}

fn field<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let fields = answer["fields"].as_array().expect("fields");
    fields.iter().find(|field| field["field"] == name).expect("that field")
}

/// When a migration is refused.
#[derive(PartialEq)]
enum Before {
    /// Before the destination does anything: it waits for the next.
    All,
    /// Before the source stops: the destination had begun to take it in.
    TheStop,
}

/// Whether a migration is refused, with these reasons, and leaves both running.
fn is_refused(source: &str, destination: &str, why: &[&str], before: Before) {
    let from = ["receive", destination, "--from", "tcp:127.0.0.1:0", "--json"];
    let mut receiving = Process::start(&from);
    let ready: Value = serde_json::from_str(&receiving.line()).expect("JSON");
    let to = ready["ready"]["from"].as_str().expect("a place");
    let sent = run(&["send", source, "--to", to, "--json"]);
    assert_eq!(sent.status, 1, "{sent:?}");
    let report = sent.json();
    assert_eq!(report["outcome"], "refused", "{report}");
    for reason in why {
        assert!(report.to_string().contains(reason), "{reason} is not in {report}");
    }
    if before == Before::TheStop {
        assert_eq!(receiving.wait(stage::LONGEST), Some(1));
    }
    drop(receiving);
    for uri in [source, destination] {
        assert_eq!(run(&["probe", uri, "--json"]).json()["state"], "RUNNING");
    }
}

fn arrives(source: &Alone, destination: &Alone) {
    let from = ["receive", &destination.uri, "--from", "tcp:127.0.0.1:0", "--json"];
    let mut receiving = Process::start(&from);
    let ready: Value = serde_json::from_str(&receiving.line()).expect("JSON");
    let to = ready["ready"]["from"].as_str().expect("a place");
    let sent = run(&["send", &source.uri, "--to", to, "--json"]);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert_eq!(receiving.wait(stage::LONGEST), Some(0));
}

#[test]
fn the_answer_changes_a_device() {
    let folder = stage::folder();
    let v1 = ["--memory", "16M", "--generation", "v1"];
    let here = Alone::of(folder.path(), "here", &v1);
    let there = Alone::of(folder.path(), "there", &["--memory", "16M"]);
    let before = (here.holds(), there.holds());

    for (one, other, late) in [(&here, &there, 0), (&there, &here, 1)] {
        let ended = compat(&one.uri, &[&other.uri]);
        assert_eq!(ended.status, 0, "{ended:?}");
        assert_eq!(ended.out.lines().count(), 1, "{ended:?}");
        let answer = ended.json();
        assert_eq!(answer["compatible"], true, "{answer}");
        assert_eq!(reasons(&answer), [""; 0]);
        assert_eq!(answer["source"], one.uri.as_str());
        assert_eq!(answer["destinations"][0], other.uri.as_str());
        assert_eq!(answer["validated_at_start"].as_array().map(Vec::len), Some(late));
        assert_eq!(answer["fields"].as_array().map(Vec::len), Some(9), "{answer}");
    }
    let answer = compat(&here.uri, &[&there.uri]).json();
    assert_eq!(field(&answer, "generation")["source"], "v1");
    assert_eq!(field(&answer, "generation")["destination"], "v2");
    // The data section of 1 MiB; a v2 device has no transactions.
    assert_eq!(field(&answer, "transactions")["source"], "1048576");
    assert!(field(&answer, "transactions")["destination"].is_null(), "{answer}");

    assert_eq!((here.state(), there.state()), ("RUNNING".into(), "RUNNING".into()));
    assert_eq!(before, (here.holds(), there.holds()));
    arrives(&here, &there);
}

#[test]
fn a_person_is_not_told_which_field_it_is() {
    let folder = stage::folder();
    let uart = Alone::of(folder.path(), "uart", &["--model", "uart"]);
    let accel =
        Alone::of(folder.path(), "accel", &["--memory", "16M", "--generation", "v1"]);
    let yes = run(&["compat", &uart.uri, &uart.uri]);
    assert_eq!(yes.status, 2, "one device, named twice: {yes:?}");
    let no = run(&["compat", &uart.uri, &accel.uri]);
    assert_eq!(no.status, 1, "{no:?}");
    assert!(no.out.starts_with(&format!("no: {} to {}\n", uart.uri, accel.uri)));
    let line = |start: &str| {
        let line = no.out.lines().find(|line| line.trim_start().starts_with(start));
        line.unwrap_or_else(|| panic!("no {start} in {}", no.out)).to_owned()
    };
    assert!(line("model").ends_with(" no"), "{no:?}");
    assert!(line("layout").ends_with(" not compared"), "{no:?}");
    assert!(line("data version").ends_with(" not compared"), "{no:?}");
    assert!(line("byte order").ends_with(" same"), "{no:?}");
    assert!(line("transactions").ends_with(" fine"), "{no:?}");
    assert!(line("- device uart is a model uart-2").contains("a model accel-16M"));
    assert!(line("validated at start").ends_with(": accel"), "{no:?}");
    assert!(no.err.is_empty(), "{no:?}");
}

#[test]
fn another_model_is_promised_a_migration() {
    let folder = stage::folder();
    let uart = Alone::of(folder.path(), "uart", &["--model", "uart"]);
    let v1 = ["--memory", "16M", "--generation", "v1", "--capabilities", "1"];
    let accel = Alone::of(folder.path(), "accel", &v1);
    let ended = compat(&uart.uri, &[&accel.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let answer = ended.json();
    assert_eq!(answer["compatible"], false);
    // All that does not fit, and not only the first of it.
    assert_eq!(unfit(&answer), ["ids", "model", "generation", "capabilities"]);
    assert_eq!(reasons(&answer).len(), 4);
    // What a migration does not look at then is not said to fit.
    for (name, why) in
        [("layout", "the ids differ"), ("data_version", "the models differ")]
    {
        let told = field(&answer, name);
        assert!(told["fits"].is_null(), "{told}");
        assert_eq!(told["why"], format!("not compared: {why}"), "{told}");
    }
    is_refused(&uart.uri, &accel.uri, &reasons(&answer), Before::All);
}

#[test]
fn a_card_with_fewer_ports_is_promised_a_migration() {
    let folder = stage::folder();
    let uart = |name: &str, ports: &str| {
        Alone::of(folder.path(), name, &["--model", "uart", "--ports", ports])
    };
    let (two, one) = (uart("two", "2"), uart("one", "1"));
    for (source, destination) in [(&two, &one), (&one, &two)] {
        let ended = compat(&source.uri, &[&destination.uri]);
        assert_eq!(ended.status, 1, "{ended:?}");
        let answer = ended.json();
        assert_eq!(unfit(&answer), ["layout", "model"]);
        is_refused(&source.uri, &destination.uri, &reasons(&answer), Before::All);
    }
}

#[test]
fn a_device_with_less_memory_is_promised_a_migration() {
    let folder = stage::folder();
    let large = Alone::of(folder.path(), "large", &["--memory", "32M"]);
    let small = Alone::of(folder.path(), "small", &["--memory", "16M"]);
    let answer = compat(&large.uri, &[&small.uri]).json();
    assert_eq!(unfit(&answer), ["layout", "model"]);
    let why = field(&answer, "layout")["why"].as_str().expect("a reason");
    assert!(why.contains("BAR 2"), "{why}");
    assert_eq!(field(&answer, "model")["source"], "accel-32M-w64K");
    assert_eq!(field(&answer, "model")["destination"], "accel-16M-w64K");
    is_refused(&large.uri, &small.uri, &reasons(&answer), Before::All);
}

#[test]
fn other_capabilities_of_a_known_model_are_refused() {
    let folder = stage::folder();
    let accel = |name: &str, set: &str| {
        Alone::of(folder.path(), name, &["--memory", "16M", "--capabilities", set])
    };
    let (all, least) = (accel("all", "7"), accel("least", "1"));
    let ended = compat(&all.uri, &[&least.uri]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let answer = ended.json();
    assert_eq!(field(&answer, "capabilities")["source"], "7");
    assert_eq!(field(&answer, "capabilities")["destination"], "1");
    assert_eq!(field(&answer, "capabilities")["fits"], true);
    arrives(&all, &least);
}

#[test]
fn a_file_is_compared_with_something_else_than_its_devices() {
    let folder = stage::folder();
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let accel = Alone::of(folder.path(), "accel", &["--memory", "16M"]);
    let uart = Alone::of(folder.path(), "uart", &["--model", "uart"]);
    let both = path("both.vfm");
    let save = ["save", &accel.uri, &uart.uri, "--output", &both];
    assert_eq!(run(&save).status, 0);

    let ended = compat(&both, &[&accel.uri, &uart.uri]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let answer = ended.json();
    assert_eq!(answer["fields"].as_array().map(Vec::len), Some(18));
    assert_eq!(answer["source"], both.as_str());

    // In another order, and not as many.
    let ended = compat(&both, &[&uart.uri, &accel.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let answer = ended.json();
    assert_eq!(unfit(&answer), ["ids", "model", "ids", "model"]);
    let restored = run(&["restore", &uart.uri, &accel.uri, "--input", &both]);
    assert_eq!(restored.status, 1);
    for reason in reasons(&answer) {
        assert!(reason.contains("in the file"), "{reason}");
        assert!(restored.err.contains(reason), "{reason} is not in {restored:?}");
    }
    let ended = compat(&both, &[&accel.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.json()["reasons"][0].to_string().contains("in the same order"));

    // From a host of another kind.
    let mut bytes = std::fs::read(&both).expect("a file");
    let head = bytes[..Preamble::SIZE].try_into().expect("a preamble");
    let preamble = Preamble::decode(&head).expect("a preamble");
    let theirs = match preamble.architecture {
        Architecture::S390 => Architecture::X86_64,
        _ => Architecture::S390,
    };
    let order = match preamble.byte_order {
        ByteOrder::LITTLE => ByteOrder::BIG,
        _ => ByteOrder::LITTLE,
    };
    let preamble = Preamble { architecture: theirs, byte_order: order, ..preamble };
    bytes[..Preamble::SIZE].copy_from_slice(&preamble.encode());
    let foreign = path("s390.vfm");
    std::fs::write(&foreign, bytes).expect("a file");
    let answer = compat(&foreign, &[&accel.uri, &uart.uri]).json();
    let (order, architecture) = ("byte_order", "architecture");
    assert_eq!(unfit(&answer), [order, architecture, order, architecture]);
    assert_eq!(field(&answer, architecture)["source"], theirs.to_string());
    let restored = run(&["restore", &accel.uri, &uart.uri, "--input", &foreign]);
    assert_eq!(restored.status, 1);
    for reason in reasons(&answer) {
        assert!(restored.err.contains(reason), "{reason} is not in {restored:?}");
    }

    // What is no saved file, and what cannot be a destination.
    let foreign = path("foreign");
    std::fs::write(
        &foreign,
        "not one of ours, and long enough to be one of ours; really",
    )
    .expect("a file");
    let ended = compat(&foreign, &[&accel.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let text = ended.json()["error"]["text"].to_string();
    assert!(text.contains(&format!("{foreign} is not a vfio-migrate stream")), "{text}");
    let restored = run(&["restore", &accel.uri, "--input", &foreign]);
    assert_eq!(restored.status, 1);
    assert!(restored.err.contains("is not a vfio-migrate stream: it starts with"));
    assert_eq!(compat(&path("missing"), &[&accel.uri]).status, 1);
    let ended = compat(&accel.uri, &[&both]);
    assert_eq!(ended.status, 2, "{ended:?}");
    let text = ended.json()["error"]["text"].to_string();
    assert!(text.contains(&both) && text.contains("only be the SOURCE"), "{text}");
    assert_eq!(compat(&accel.uri, &[&uart.uri, &uart.uri]).status, 2);
    assert_eq!((accel.state(), uart.state()), ("RUNNING".into(), "RUNNING".into()));
}

#[test]
fn the_devices_of_a_guest_in_a_file_cannot_be_asked_about() {
    let folder = stage::folder();
    let guest = Guest::run(folder.path(), &Machine::default());
    let file = folder.path().join("guest.vfm");
    let file = file.to_str().expect("text");
    let saved = guest.ctl(&["snapshot", file]);
    assert_eq!(saved.status, 0, "{saved:?}");
    let v1 = ["--memory", "16M", "--generation", "v1"];
    let same = Alone::of(folder.path(), "same", &v1);
    let other = Alone::of(folder.path(), "other", &["--memory", "32M"]);
    let ended = compat(file, &[&same.uri]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(unfit(&compat(file, &[&other.uri]).json()), ["layout", "model"]);
    // What is of a guest is for no device alone.
    let restored = run(&["restore", &same.uri, "--input", file]);
    assert_eq!(restored.status, 1);
    assert!(restored.err.contains("a whole guest"), "{restored:?}");
}

#[test]
fn devices_that_cannot_be_stopped_together_are_promised_a_restore() {
    let folder = stage::folder();
    let alone = |name: &str| {
        Alone::of(folder.path(), name, &["--memory", "16M", "--capabilities", "1"])
    };
    let (a, b) = (alone("a"), alone("b"));
    let file = folder.path().join("f.vfm");
    let file = file.to_str().expect("text");
    let save = ["save", &a.uri, &b.uri, "--output", file, "--independent"];
    assert_eq!(run(&save).status, 0);
    for (more, status) in [(&[][..], 1), (&["--independent"][..], 0)] {
        let uris = [a.uri.as_str(), b.uri.as_str()];
        let ended = compat(file, &[&uris[..], more].concat());
        assert_eq!(ended.status, status, "{ended:?}");
        let restore = [&["restore", "--input", file][..], &uris, more].concat();
        assert_eq!(run(&restore).status, status);
    }
}

/// A device behind a v1 region with so small a data section, served by this process.
struct Narrow {
    uri: String,
    stop: Stop,
    server: Option<JoinHandle<()>>,
}

impl Narrow {
    fn serve(
        folder: &Path,
        name: &str,
        model: Box<dyn Migratable>,
        section_bytes: u64,
    ) -> Narrow {
        let path = folder.join(name);
        let runner = Runner::new(model).expect("a valid model");
        let front = FrontOptions { section_bytes, ..FrontOptions::new(Generation::V1) };
        let options = ServerOptions { front: Some(front), ..ServerOptions::default() };
        let mut server = Server::new(runner, options).expect("a server");
        let listener = Listener::bind(&path).expect("a listener");
        let (stop, stopping) = {
            let stop = Stop::new().expect("an event");
            (stop.clone(), stop)
        };
        let server = std::thread::spawn(move || {
            server.serve(listener, &stopping).expect("it serves to the end");
        });
        Narrow {
            uri: format!("vfio-user:{}", path.display()),
            stop,
            server: Some(server),
        }
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.server.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

#[test]
fn a_transaction_that_nothing_can_take_in_is_promised_a_migration() {
    let folder = stage::folder();
    let card = || Box::new(Uart::new(uart::Parameters::default()).expect("a card"));
    let wide = Narrow::serve(folder.path(), "wide", card(), 8192);
    let narrow = Narrow::serve(folder.path(), "narrow", card(), 4096);
    assert_eq!(compat(&narrow.uri, &[&wide.uri]).status, 0);
    let ended = compat(&wide.uri, &[&narrow.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let answer = ended.json();
    assert_eq!(unfit(&answer), ["transactions"]);
    assert_eq!(field(&answer, "transactions")["source"], "8192");
    assert_eq!(field(&answer, "transactions")["destination"], "4096");
    is_refused(&wide.uri, &narrow.uri, &reasons(&answer), Before::TheStop);

    // A file says how long they really were: here one of 96 bytes.
    let file = folder.path().join("f.vfm");
    let file = file.to_str().expect("text");
    assert_eq!(run(&["save", &wide.uri, "--output", file]).status, 0);
    let ended = compat(file, &[&narrow.uri]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(field(&ended.json(), "transactions")["source"], "96");
    let restored = run(&["restore", &narrow.uri, "--input", file]);
    assert_eq!(restored.status, 0, "{restored:?}");
}

#[test]
fn a_file_with_a_transaction_too_long_resets_the_device_that_it_does_not_fit() {
    let folder = stage::folder();
    let v1 = ["--memory", "16M", "--generation", "v1"];
    let wide = Alone::of(folder.path(), "wide", &v1);
    wide.fill(64 << 10);
    let file = folder.path().join("f.vfm");
    let file = file.to_str().expect("text");
    assert_eq!(run(&["save", &wide.uri, "--output", file]).status, 0);

    let accel = Accel::new(accel::Parameters::default()).expect("an accelerator");
    let narrow = Narrow::serve(folder.path(), "narrow", Box::new(accel), 8192);
    let holds =
        || run(&["probe", "--digest", "--json", &narrow.uri]).json()["digest"].take();
    let client = |path: &str| {
        let options = ClientOptions::new("filled", Arc::new(NoDma));
        Client::connect(path.as_ref(), options).expect("a server")
    };
    let path = narrow.uri.trim_start_matches("vfio-user:");
    client(path).region_write(2, 0, &[7; 8]).expect("memory is writable");
    let before = holds();
    let ended = compat(file, &[&narrow.uri]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let answer = ended.json();
    assert_eq!(unfit(&answer), ["transactions"]);
    let restored = run(&["restore", &narrow.uri, "--input", file]);
    assert_eq!(restored.status, 1, "{restored:?}");
    assert!(restored.err.contains(reasons(&answer)[0]), "{restored:?}");
    assert_eq!(holds(), before);
}
