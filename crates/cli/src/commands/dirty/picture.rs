//! A heat map as SVG: addresses upwards, time to the right, and how much of each cell was
//! written as its colour.
//!
//! ```text
//!   address |  ░░  ▓▓        one <g class="column"> a column, at its own time and width;
//!           |░░  ▓▓  ░░      in it one <path> for each run of cells of one colour
//!           +-----------> s
//! ```
//!
//! However long it goes on and however much memory there is, a picture has at most
//! [`MOST_COLUMNS`] by [`MOST_ROWS`] cells.

use std::fmt::Write;
use std::time::Duration;

use dirty::IovaRange;

use crate::units::Size;

/// The most columns: intervals beyond that share one.
const MOST_COLUMNS: u64 = 512;
/// The most rows.
const MOST_ROWS: u64 = 256;
/// The smallest row, in bytes: a page.
const PAGE: u64 = 4096;

/// The size of the picture.
const SIZE: (u32, u32) = (1000, 600);
/// Where the map is in it: left, top, width, height.
const MAP: (f64, f64, f64, f64) = (170.0, 84.0, 650.0, 440.0);
/// From little to much; each colour stands for twice as much as the one before.
const COLOURS: [&str; 8] = [
    "#fde6a8", "#fdc966", "#fba238", "#f0761f", "#d94e0f", "#ad2f0a", "#76180f",
    "#3d0a14",
];
/// What a cell without writes looks like.
const NOTHING: &str = "#f2f3f5";

/// What was written where and when.
pub(super) struct Heat {
    range: IovaRange,
    row_bytes: u64,
    /// How many intervals make a column.
    together: u64,
    columns: Vec<Column>,
}

struct Column {
    from: Duration,
    to: Duration,
    intervals: u64,
    /// Bytes that were written, by row; what is written again in another interval counts
    /// again.
    bytes: Vec<u64>,
}

/// What stands around the map.
pub(super) struct Words<'a> {
    pub(super) device: &'a str,
    pub(super) interval: Duration,
    /// A sentence below the title.
    pub(super) said: &'a str,
}

impl Heat {
    /// An empty map over `range`, for at most so many intervals.
    pub(super) fn new(range: IovaRange, intervals: u64) -> Heat {
        let row_bytes = range
            .length()
            .div_ceil(MOST_ROWS)
            .checked_next_power_of_two()
            .unwrap_or(PAGE);
        let row_bytes = row_bytes.max(PAGE);
        let together = intervals.div_ceil(MOST_COLUMNS).max(1);
        Heat { range, row_bytes, together, columns: Vec::new() }
    }

    /// Whether any interval was added.
    pub(super) fn begun(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Adds what was written in one interval.
    pub(super) fn add(
        &mut self,
        from: Duration,
        to: Duration,
        runs: impl Iterator<Item = IovaRange>,
    ) {
        let (together, start, row_bytes) =
            (self.together, self.range.start(), self.row_bytes);
        let rows = usize::try_from(self.range.length().div_ceil(row_bytes)).unwrap_or(0);
        let column = match self.columns.pop() {
            Some(column) if column.intervals < together => column,
            full => {
                self.columns.extend(full);
                Column { from, to, intervals: 0, bytes: vec![0; rows] }
            }
        };
        let mut column = Column { to, intervals: column.intervals + 1, ..column };
        for run in runs.filter_map(|run| run.intersection(self.range)) {
            let (first, end) = (run.start() - start, run.end() - start);
            for row in first / row_bytes..end.div_ceil(row_bytes) {
                let (low, high) = (row * row_bytes, (row + 1) * row_bytes);
                let here = high.min(end) - low.max(first);
                if let Some(bytes) =
                    usize::try_from(row).ok().and_then(|row| column.bytes.get_mut(row))
                {
                    *bytes += here;
                }
            }
        }
        self.columns.push(column);
    }

    /// The picture.
    pub(super) fn svg(&self, words: &Words<'_>) -> String {
        let mut svg = String::new();
        // Writing to a String cannot fail.
        let _ = self.draw(&mut svg, words);
        svg
    }

    fn draw(&self, svg: &mut String, words: &Words<'_>) -> std::fmt::Result {
        let (width, height) = SIZE;
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"13\" fill=\"#222\">\n<style>"
        )?;
        for (level, colour) in COLOURS.iter().enumerate() {
            writeln!(svg, ".h{} {{ fill: {colour} }}", level + 1)?;
        }
        let device = escaped(words.device);
        let (left, top, map_width, map_height) = MAP;
        writeln!(
            svg,
            "</style>\n<title>Memory written by {device}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"{left}\" y=\"32\" font-size=\"19\" font-weight=\"bold\">Memory \
             written by {device}</text>\n\
             <text x=\"{left}\" y=\"56\" fill=\"#555\">{}</text>\n\
             <rect x=\"{left}\" y=\"{top}\" width=\"{map_width}\" \
             height=\"{map_height}\" fill=\"{NOTHING}\"/>",
            escaped(words.said)
        )?;
        self.cells(svg)?;
        if self.is_empty() {
            // An empty map might be taken for a broken one.
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" font-size=\"16\" text-anchor=\"middle\" \
                 fill=\"#777\">nothing was written here in this time</text>",
                left + map_width / 2.0,
                top + map_height / 2.0
            )?;
        }
        self.addresses(svg)?;
        self.times(svg)?;
        self.legend(svg, words.interval)?;
        writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{map_width}\" \
             height=\"{map_height}\" fill=\"none\" stroke=\"#222\"/>\n</svg>"
        )
    }

    /// Whether nothing was written anywhere.
    fn is_empty(&self) -> bool {
        self.columns.iter().all(|column| column.bytes.iter().all(|bytes| *bytes == 0))
    }

    /// How long it went on, in seconds.
    fn seconds(&self) -> f64 {
        self.columns.last().map_or(0.0, |last| last.to.as_secs_f64()).max(1e-3)
    }

    fn cells(&self, svg: &mut String) -> std::fmt::Result {
        let (left, top, width, height) = MAP;
        let across = width / self.seconds();
        let rows = self.range.length() as f64 / self.row_bytes as f64;
        // A unit to the right is a second, a unit upwards is a row.
        writeln!(
            svg,
            "<g transform=\"translate({left} {}) scale({across:.4} {:.6})\" \
             shape-rendering=\"crispEdges\">",
            top + height,
            -height / rows
        )?;
        for column in &self.columns {
            let (from, to) = (column.from.as_secs_f64(), column.to.as_secs_f64());
            let total: u64 = column.bytes.iter().sum();
            writeln!(
                svg,
                "<g class=\"column\" transform=\"translate({from:.4} 0) \
                 scale({:.4} 1)\"><title>{from:.2} s to {to:.2} s: {} written</title>",
                (to - from).max(0.0),
                Size::from_bytes(total)
            )?;
            let levels: Vec<usize> = (0..column.bytes.len())
                .map(|row| level(column.bytes[row], self.capacity(row, column)))
                .collect();
            let mut first = 0;
            for same in levels.chunk_by(|a, b| a == b) {
                let end = first + same.len();
                if same[0] > 0 {
                    let high = (end as f64).min(rows) - first as f64;
                    writeln!(
                        svg,
                        "<path class=\"h{}\" d=\"M0 {first}h1v{high}h-1z\"/>",
                        same[0]
                    )?;
                }
                first = end;
            }
            writeln!(svg, "</g>")?;
        }
        writeln!(svg, "</g>")
    }

    /// What a cell would hold if every page of it were written in each of its intervals.
    fn capacity(&self, row: usize, column: &Column) -> u64 {
        let low = row as u64 * self.row_bytes;
        let row = self.row_bytes.min(self.range.length() - low);
        row.saturating_mul(column.intervals)
    }

    fn addresses(&self, svg: &mut String) -> std::fmt::Result {
        let (left, top, _, height) = MAP;
        let (start, length) = (self.range.start(), self.range.length());
        let step = (length / 8).next_power_of_two().max(PAGE);
        let mut at = start.next_multiple_of(step);
        while at <= self.range.end() {
            let y = top + height - (at - start) as f64 / length as f64 * height;
            writeln!(
                svg,
                "<path d=\"M{} {y:.1}h6\" stroke=\"#222\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\" font-family=\"monospace\">{at:#x}</text>",
                left - 6.0,
                left - 10.0,
                y + 4.5
            )?;
            let Some(next) = at.checked_add(step) else { break };
            at = next;
        }
        let middle = top + height / 2.0;
        writeln!(
            svg,
            "<text x=\"18\" y=\"{middle}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 18 {middle})\">address (IOVA)</text>"
        )
    }

    fn times(&self, svg: &mut String) -> std::fmt::Result {
        let (left, top, width, height) = MAP;
        let seconds = self.seconds();
        let step = time_step(seconds);
        let digits = if step < 0.01 {
            3
        } else if step < 0.1 {
            2
        } else {
            usize::from(step < 1.0)
        };
        let mut tick = 0;
        while f64::from(tick) * step <= seconds * 1.0001 && tick < 100 {
            let at = f64::from(tick) * step;
            let (x, y) = (left + at / seconds * width, top + height);
            writeln!(
                svg,
                "<path d=\"M{x:.1} {y}v6\" stroke=\"#222\"/><text x=\"{x:.1}\" \
                 y=\"{}\" text-anchor=\"middle\">{at:.digits$}</text>",
                y + 21.0
            )?;
            tick += 1;
        }
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">time since the start \
             (seconds)</text>",
            left + width / 2.0,
            top + height + 46.0
        )
    }

    fn legend(&self, svg: &mut String, interval: Duration) -> std::fmt::Result {
        let (left, top, width, _) = MAP;
        let x = left + width + 24.0;
        let interval = format!("{interval:?}");
        let mut y = top + 12.0;
        for line in ["share of a cell's", "pages written", "in an interval"] {
            writeln!(svg, "<text x=\"{x}\" y=\"{y}\">{line}</text>")?;
            y += 18.0;
        }
        let mut swatch = |svg: &mut String, colour: &str, text: &str| {
            let done = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"22\" height=\"20\" fill=\"{colour}\" \
                 stroke=\"#888\" stroke-width=\"0.5\"/><text x=\"{}\" \
                 y=\"{}\">{text}</text>",
                x + 30.0,
                y + 14.5
            );
            y += 24.0;
            done
        };
        let shares = ["0.8", "1.6", "3.1", "6.3", "12.5", "25", "50", "100"];
        for (colour, share) in COLOURS.iter().zip(shares).rev() {
            swatch(svg, colour, &format!("up to {share} %"))?;
        }
        swatch(svg, NOTHING, "nothing")?;
        let lines = [
            "a cell is".to_owned(),
            format!("{} high,", Size::from_bytes(self.row_bytes)),
            match self.together {
                1 => format!("{interval} wide"),
                together => format!("{together} x {interval} wide"),
            },
        ];
        y += 22.0;
        for line in lines {
            writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"#555\">{line}</text>")?;
            y += 18.0;
        }
        Ok(())
    }
}

/// The colour for `bytes` of at most `most`: 0 for none, 8 for more than half.
fn level(bytes: u64, most: u64) -> usize {
    if bytes == 0 {
        return 0;
    }
    let half = (0..7).take_while(|n| bytes <= (most >> (n + 1))).count();
    COLOURS.len() - half
}

/// 1, 2 or 5 of a power of ten, so that there are at most ten of them in `seconds`.
fn time_step(seconds: f64) -> f64 {
    let mut step = 0.001;
    let mut factors = [2.0, 2.5, 2.0].into_iter().cycle();
    while seconds / step > 10.0 {
        step *= factors.next().unwrap_or(2.0);
    }
    step
}

/// A text as it stands in XML.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // XML has no way to say them.
            control if control.is_control() => safe.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    #[test]
    fn a_day_of_a_terabyte_is_a_picture_of_bounded_size() {
        let whole = range(1 << 33, (1 << 40) - 4096);
        let mut heat = Heat::new(whole, 8_640_000);
        let second = Duration::from_millis(10);
        // As many as share one column, and one more.
        for n in 0..=heat.together as u32 {
            heat.add(second * n, second * (n + 1), [whole].into_iter());
        }
        assert_eq!(heat.columns.len(), 2);
        assert!(8_640_000_u64.div_ceil(heat.together) <= MOST_COLUMNS);
        assert!(heat.columns[0].bytes.len() as u64 <= MOST_ROWS);
        let all: u64 = heat.columns[1].bytes.iter().sum();
        assert_eq!(all, whole.length());
        for row in 0..heat.columns[0].bytes.len() {
            for column in &heat.columns {
                assert_eq!(level(column.bytes[row], heat.capacity(row, column)), 8);
            }
        }
    }

    #[test]
    fn a_run_over_several_rows_counts_in_each_and_nowhere_else() {
        let mut heat = Heat::new(range(0x1000, 1 << 30), 4);
        assert_eq!(heat.row_bytes, 4 << 20);
        let run = range(0x1000 + (4 << 20) - 4096, (4 << 20) + 2 * 4096);
        heat.add(Duration::ZERO, Duration::from_secs(1), [run].into_iter());
        let bytes = &heat.columns[0].bytes;
        assert_eq!(bytes[..4], [4096, 4 << 20, 4096, 0]);
        assert_eq!(bytes.iter().sum::<u64>(), run.length());
    }

    #[test]
    fn one_page_of_many_is_seen() {
        assert_eq!(level(0, 1 << 40), 0);
        assert_eq!(level(4096, 1 << 40), 1);
        assert_eq!(level(50, 100), 7);
        assert_eq!(level(51, 100), 8);
        assert_eq!(level(100, 100), 8);
    }

    #[test]
    fn a_device_that_writes_nothing_is_not_a_broken_picture() {
        let said = "nothing was written";
        let words = Words { device: "a", interval: Duration::from_secs(1), said: "" };
        let mut heat = Heat::new(range(0, 1 << 20), 2);
        let second = Duration::from_secs(1);
        heat.add(Duration::ZERO, second, [].into_iter());
        assert!(heat.svg(&words).contains(said));
        heat.add(second, 2 * second, [range(4096, 4096)].into_iter());
        assert!(!heat.svg(&words).contains(said));
    }

    #[test]
    fn a_name_of_a_device_cannot_break_the_picture() {
        let heat = Heat::new(range(0, 4096), 1);
        let words = Words {
            device: "vfio-user:<a&b>\"\u{1}",
            interval: Duration::from_secs(1),
            said: "",
        };
        let svg = heat.svg(&words);
        assert!(svg.contains("vfio-user:&lt;a&amp;b&gt;&quot;\u{fffd}"), "{svg}");
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (seconds, step) in
            [(5.0, 0.5), (30.0, 5.0), (0.01, 0.001), (86_400.0, 10_000.0)]
        {
            assert!((time_step(seconds) - step).abs() < step / 1e6, "{seconds}");
        }
    }
}
