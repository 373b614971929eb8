//! The charts that people see.

use vfio_migrate_states::chart;
use vfio_migrate_states::v2::{Capabilities, arcs};

#[test]
fn the_table_of_set_1() {
    let expected = "\
from\\to | R   | S | SC    | RE
--------|-----|---|-------|------
R       | .   | S | S>SC* | S>RE*
S       | R   | . | SC*   | RE*
SC      | S>R | S | .     | S>RE*
RE      | S>R | S | S>SC* | .

R   RUNNING
S   STOP
SC  STOP_COPY
RE  RESUMING

*  the last arc returns a data descriptor
.  already there, nothing is done
-  refused (EINVAL)
";
    assert_eq!(chart::table(Capabilities::STOP_COPY), expected);
}

#[test]
fn the_table_of_set_7_shows_what_is_refused() {
    let table = chart::table(Capabilities::ALL);
    let row = table.lines().find(|line| line.starts_with("SC ")).expect("a row");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    assert_eq!(cells, ["SC", "S>RP>R", "S>RP", "-", "-", "S", ".", "S>RE*"]);
}

#[test]
fn the_diagram_has_every_arc_once() {
    for capabilities in Capabilities::EVERY {
        let diagram = chart::mermaid(capabilities);
        assert!(diagram.starts_with("stateDiagram-v2\n    [*] --> RUNNING\n"));
        for (from, to) in arcs(capabilities) {
            let arc = format!("    {from} --> {to}");
            let found = diagram
                .lines()
                .filter(|line| line.split(':').next() == Some(arc.as_str()));
            assert_eq!(found.count(), 1, "{arc}");
        }
        assert_eq!(diagram.lines().count(), arcs(capabilities).count() + 2);
    }
}
