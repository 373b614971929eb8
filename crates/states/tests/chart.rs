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

/// What a graph says, read by the part of Graphviz's grammar that it uses: statements
/// end in `;`, groups in `}`.
#[derive(Default)]
struct Graph {
    arcs: Vec<(String, String)>,
    groups: Vec<Vec<String>>,
}

fn parse(text: &str) -> Graph {
    let body = text.strip_prefix("digraph v2 {\n").expect("a directed graph");
    let body = body.strip_suffix("}\n").expect("its end");
    let (mut graph, mut inside) = (Graph::default(), false);
    for statement in body.lines().map(str::trim) {
        assert_eq!(statement.matches('"').count() % 2, 0, "{statement}");
        if statement.starts_with("subgraph cluster_") && statement.ends_with(" {") {
            assert!(!inside, "groups are not nested");
            inside = true;
            graph.groups.push(Vec::new());
            continue;
        }
        if statement == "}" {
            assert!(inside, "an end without a beginning");
            inside = false;
            continue;
        }
        let statement = statement.strip_suffix(';').expect("a statement ends in ;");
        let plain = statement.split(" [").next().expect("something");
        if statement.contains(" [") {
            assert!(statement.ends_with(']'), "{statement}");
        }
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if let Some((from, to)) = plain.split_once(" -> ") {
            assert!(is_name(from) && is_name(to), "{statement}");
            graph.arcs.push((from.to_owned(), to.to_owned()));
        } else if inside && is_name(plain) {
            let group = graph.groups.last_mut().expect("inside of one");
            group.push(plain.to_owned());
        } else {
            assert!(is_name(plain) || plain.contains('='), "{statement}");
        }
    }
    assert!(!inside, "a group has no end");
    graph
}

#[test]
fn the_graph_has_every_arc_once_and_nothing_that_is_refused() {
    for capabilities in Capabilities::EVERY {
        let graph = parse(&chart::dot(capabilities));
        let arcs =
            arcs(capabilities).map(|(from, to)| (from.to_string(), to.to_string()));
        let begin = ("start".to_owned(), "RUNNING".to_owned());
        let expected: Vec<_> = std::iter::once(begin).chain(arcs).collect();
        assert_eq!(graph.arcs, expected);
        assert!(graph.groups.iter().all(|group| !group.is_empty()));
        let mut grouped: Vec<String> = graph.groups.concat();
        let mut states: Vec<String> =
            capabilities.states().map(|state| state.to_string()).collect();
        states.retain(|state| state != "ERROR");
        grouped.sort();
        states.sort();
        assert_eq!(grouped, states);
    }
}
