//! A picture of a run: instances, rates, latencies and processor time over time, with its moves, as SVG.

use std::fmt::Write as _;

use stack::services::Service;

use super::Move;
use super::capacity::processors;
use super::report::{AGAIN, Report, Second, median};

const WIDTH: f64 = 1200.0;
const PANEL: f64 = 150.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
/// Height of the title, the phases' names and the moves' numbers.
const TOP: f64 = 110.0;
const GAP: f64 = 56.0;
/// Height of a line of the list of moves.
const LINE: f64 = 17.0;
/// Rows over which the numbers of moves are spread, so that close ones do not cover each other.
const ROWS: usize = 3;
const INK: &str = "#30363d";
const FAINT: &str = "#d5dae0";
const LIMIT: &str = "#b91c1c";
const READS: &str = "#0b57b0";
const WRITES: &str = "#c2410c";
const VIEWS: &str = "#15803d";
const MACHINE: &str = "#8b949e";

struct Panel {
    title: String,
    lines: Vec<Line>,
    /// Values that should not be exceeded: name, colour and value.
    limits: Vec<(String, &'static str, f64)>,
    scale: Scale,
}

struct Line {
    name: String,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// Whole numbers that stay the same until the next point.
    Steps,
    /// Powers of ten, from 1 on.
    Tens,
}

/// Returns the picture.
pub(super) fn draw(report: &Report) -> String {
    let panels = panels(report);
    let moves: Vec<&Move> = report.moves.iter().filter(|one| one.change.is_some() || one.is_sum()).collect();
    let length = report.phases.iter().map(|phase| phase.seconds).sum::<f64>().max(1.0);
    let x = move |at: f64| LEFT + at / length * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + panels.len() as f64 * (PANEL + GAP);
    let height = bottom + (moves.len().div_ceil(2) + 1) as f64 * LINE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let (quota, reads, writes) = (report.capacity.quota, &report.capacity.reads, &report.capacity.writes);
    let title = format!(
        "Instances of {quota} cores each, of which one serves {:.0} reads/s or {:.0} writes/s",
        reads.per_second, writes.per_second
    );
    put(&mut svg, format_args!("<text x=\"{LEFT}\" y=\"24\" font-size=\"16\" fill=\"{INK}\">{title}</text>"));
    for (number, (phase, from, to)) in report.spans().enumerate() {
        let (fill, width) = (if number % 2 == 0 { "#f6f8fa" } else { "#eef3f9" }, x(to) - x(from));
        let (x, high) = (x(from), bottom - GAP + 4.0 - 36.0);
        put(
            &mut svg,
            format_args!("<rect x=\"{x:.1}\" y=\"36\" width=\"{width:.1}\" height=\"{high}\" fill=\"{fill}\"/>"),
        );
        put(
            &mut svg,
            format_args!("<text x=\"{:.1}\" y=\"51\" font-size=\"11\" fill=\"{INK}\">{}</text>", x + 3.0, phase.name),
        );
    }
    for (number, one) in moves.iter().enumerate() {
        mark(&mut svg, number, one, bottom - GAP, |at| x(at.clamp(0.0, length)));
    }
    for (number, panel) in panels.iter().enumerate() {
        draw_panel(&mut svg, panel, TOP + number as f64 * (PANEL + GAP), length, x);
    }
    for (number, one) in moves.iter().enumerate() {
        let (column, row) = (number / moves.len().div_ceil(2), number % moves.len().div_ceil(2));
        let at = (LEFT + column as f64 * (WIDTH - LEFT) / 2.0, bottom + row as f64 * LINE);
        text(&mut svg, at, colour(one), &format!("{}: at {:.1} s, {}", number + 1, one.at, words(one)));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panels(report: &Report) -> [Panel; 5] {
    let seconds = |of: fn(&Second) -> f64, all: &[Second]| -> Vec<(f64, f64)> {
        all.iter().enumerate().map(|(at, second)| (at as f64 + 0.5, of(second))).collect()
    };
    let both = |of: fn(&Second) -> f64| {
        let line = |name: &str, colour, all| Line { name: name.to_owned(), colour, points: seconds(of, all) };
        vec![line("reads", READS, &report.reads), line("writes", WRITES, &report.writes)]
    };
    let each = |of: &dyn Fn(Service) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |service: Service| Line {
            name: service.name().to_owned(),
            colour: of_service(service),
            points: of(service),
        };
        [Service::QueryApi, Service::CommandApi, Service::Projector].map(line).into()
    };
    let steady = report.phases.first().map_or(0, |phase| phase.seconds as usize);
    let again = |kind: &str, colour, all: &[Second]| {
        let limit = AGAIN * median(&all[..steady.min(all.len())], |of| of.p99_ms);
        (format!("{AGAIN} x steady {kind}"), colour, limit)
    };
    let mut cores = each(&|service| report.watch.cores(service));
    let idle = report.watch.looks.iter().map(|look| (look.at, look.idle * processors())).collect();
    cores.push(Line { name: String::from("idle"), colour: MACHINE, points: idle });
    let panel = |title: &str, lines, limits, scale| Panel { title: title.to_owned(), lines, limits, scale };
    [
        panel("ready instances", each(&|service| report.watch.instances(service)), vec![], Scale::Steps),
        panel("requests due per second", both(|second| second.requests as f64), vec![], Scale::Linear),
        panel(
            "latency in ms, p99 of each second",
            both(|second| second.p99_ms),
            vec![again("reads", READS, &report.reads), again("writes", WRITES, &report.writes)],
            Scale::Tens,
        ),
        panel(
            "latency in ms, longest of each second",
            both(|second| second.longest_ms),
            vec![(String::from("500 ms"), LIMIT, 500.0)],
            Scale::Tens,
        ),
        panel(&format!("cores in use, and idle of {}", processors()), cores, vec![], Scale::Linear),
    ]
}

fn draw_panel(svg: &mut String, panel: &Panel, top: f64, length: f64, x: impl Fn(f64) -> f64) {
    let values = panel.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    let (marks, share) = axis(panel.scale, values.fold(0.0, f64::max));
    let y = |value: f64| top + PANEL * (1.0 - share(value).clamp(0.0, 1.0));
    for mark in marks {
        line(svg, (x(0.0), y(mark)), (x(length), y(mark)), FAINT, "");
        let label = if mark.fract() == 0.0 { format!("{mark:.0}") } else { format!("{mark:.1}") };
        put(
            svg,
            format_args!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{INK}\">{label}</text>",
                LEFT - 6.0,
                y(mark) + 4.0
            ),
        );
    }
    put(
        svg,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\" fill=\"{INK}\">{}</text>",
            top - 8.0,
            panel.title
        ),
    );
    let mut at = LEFT + 300.0;
    for (name, colour, value) in &panel.limits {
        line(svg, (x(0.0), y(*value)), (x(length), y(*value)), colour, " stroke-dasharray=\"5 4\"");
        at = legend(svg, (at, top - 8.0), name, colour, " stroke-dasharray=\"5 4\"");
    }
    for (number, Line { name, colour, points }) in panel.lines.iter().enumerate() {
        // Equal numbers of instances are drawn beside each other.
        let beside = if panel.scale == Scale::Steps { 2.0 * number as f64 - 2.0 } else { 0.0 };
        let y = |value| y(value) - beside;
        let (mut path, mut before) = (String::new(), None::<f64>);
        for (at, value) in points.iter().filter(|(at, _)| *at <= length) {
            if let Some(before) = before.filter(|_| panel.scale == Scale::Steps) {
                put(&mut path, format_args!("{:.1},{before:.1}", x(*at)));
            }
            put(&mut path, format_args!("{:.1},{:.1}", x(*at), y(*value)));
            before = Some(y(*value));
        }
        let path = path.trim().replace('\n', " ");
        put(svg, format_args!("<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{path}\"/>"));
        at = legend(svg, (at, top - 8.0), name, colour, " stroke-width=\"2.5\"");
    }
    let step = round_step(length / 12.0);
    for at in (0..=12).map(|mark| f64::from(mark) * step).filter(|at| *at <= length) {
        line(svg, (x(at), top + PANEL), (x(at), top + PANEL + 4.0), INK, "");
        put(
            svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{INK}\">{at:.0} s</text>",
                x(at),
                top + PANEL + 17.0
            ),
        );
    }
}

/// Returns the values to mark on an axis, and a function from a value to its share of the height.
fn axis(scale: Scale, most: f64) -> (Vec<f64>, Box<dyn Fn(f64) -> f64>) {
    match scale {
        Scale::Tens => {
            let tens = most.max(600.0).log10();
            let marks = (0..=5).map(f64::from).filter(|ten| *ten <= tens).map(|ten| 10_f64.powf(ten));
            (marks.collect(), Box::new(move |value| value.max(1.0).log10() / tens))
        }
        Scale::Steps => {
            let most = most.max(1.0) + 0.5;
            ((0..=20).map(f64::from).filter(|mark| *mark <= most).collect(), Box::new(move |value| value / most))
        }
        Scale::Linear => {
            let most = most.max(0.1) * 1.1;
            let step = round_step(most / 5.0);
            (
                (0..=5).map(|mark| f64::from(mark) * step).filter(|mark| *mark <= most).collect(),
                Box::new(move |value| value / most),
            )
        }
    }
}

/// Returns the next larger one of 1, 2, 5 and 10 times a power of ten.
fn round_step(least: f64) -> f64 {
    let ten = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|times| times * ten).find(|step| *step >= least).unwrap_or(10.0 * ten)
}

/// Marks a move by a line through all panels, or by a band if it took long, with its number above.
fn mark(svg: &mut String, number: usize, one: &Move, bottom: f64, x: impl Fn(f64) -> f64) {
    let (from, width, colour) = (x(one.at), (x(one.ended) - x(one.at)).max(1.0), colour(one));
    let opacity = if one.is_sum() { 0.08 } else { 0.25 };
    let row = 66.0 + (number % ROWS) as f64 * 12.0;
    put(
        svg,
        format_args!(
            "<rect x=\"{from:.1}\" y=\"{row}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
            bottom - row
        ),
    );
    put(
        svg,
        format_args!(
            "<text x=\"{:.1}\" y=\"{row}\" font-size=\"10\" fill=\"{colour}\">{}</text>",
            from + 1.5,
            number + 1
        ),
    );
}

fn words(one: &Move) -> String {
    match one.change {
        Some(_) => one.what.clone(),
        None => format!("{}, took {:.1} s", one.what, one.ended - one.at),
    }
}

fn colour(one: &Move) -> &'static str {
    one.change.map_or(INK, |(service, ..)| of_service(service))
}

fn of_service(service: Service) -> &'static str {
    match service {
        Service::QueryApi => READS,
        Service::CommandApi => WRITES,
        Service::Projector => VIEWS,
    }
}

/// Draws an entry of a legend and returns the position of the next one.
fn legend(svg: &mut String, (x, y): (f64, f64), name: &str, colour: &str, style: &str) -> f64 {
    line(svg, (x, y - 4.0), (x + 22.0, y - 4.0), colour, style);
    text(svg, (x + 27.0, y), colour, name);
    x + 50.0 + 7.0 * name.len() as f64
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, style: &str) {
    put(svg, format_args!("<path stroke=\"{colour}\"{style} d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>"));
}

fn text(svg: &mut String, (x, y): (f64, f64), colour: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{text}</text>"));
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("writing to a String cannot fail");
}
