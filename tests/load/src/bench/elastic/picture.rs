//! A picture of a run: instances, rates and latencies over time, as SVG.

use std::fmt::Write as _;

use stack::services::Service;

use super::report::{Report, Second};

const WIDTH: f64 = 1000.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const GAP: f64 = 50.0;
const COLOURS: [&str; 4] = ["#0b57b0", "#c2410c", "#15803d", "#7c3aed"];

struct Panel<'a> {
    title: &'a str,
    /// Names and points.
    lines: Vec<(&'a str, Vec<(f64, f64)>)>,
    scale: Scale,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// Of tens, from 1 on.
    Tens,
}

/// Returns the picture.
pub(super) fn draw(report: &Report) -> String {
    let seconds = |of: fn(&Second) -> f64, all: &[Second]| -> Vec<(f64, f64)> {
        all.iter().enumerate().map(|(at, second)| (at as f64 + 0.5, of(second))).collect()
    };
    let instances = Service::ALL.map(|service| (service.name(), report.watch.instances(service)));
    let rate = |second: &Second| second.requests as f64;
    let panels = [
        Panel { title: "ready instances", lines: instances.to_vec(), scale: Scale::Linear },
        Panel {
            title: "requests per second",
            lines: vec![("reads", seconds(rate, &report.reads)), ("writes", seconds(rate, &report.writes))],
            scale: Scale::Linear,
        },
        Panel {
            title: "latency in ms",
            lines: vec![
                ("reads, p99", seconds(|second| second.p99_ms, &report.reads)),
                ("writes, p99", seconds(|second| second.p99_ms, &report.writes)),
                ("reads, p50", seconds(|second| second.p50_ms, &report.reads)),
                ("writes, p50", seconds(|second| second.p50_ms, &report.writes)),
            ],
            scale: Scale::Tens,
        },
    ];
    let length = report.phases.iter().map(|phase| phase.seconds).sum::<f64>().max(1.0);
    let x = |at: f64| LEFT + at / length * (WIDTH - LEFT - 20.0);
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let mut from = 0.0;
    for phase in &report.phases {
        text(&mut svg, x(from) + 4.0, 18.0, phase.name);
        line(&mut svg, (x(from), 8.0), (x(from), height - GAP), "#d5dae0");
        from += phase.seconds;
    }
    for (number, panel) in panels.iter().enumerate() {
        draw_panel(&mut svg, panel, TOP + number as f64 * (PANEL + GAP), length, x);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel<'_>, top: f64, length: f64, x: impl Fn(f64) -> f64) {
    let values = panel.lines.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
    let most = values.fold(1.0, f64::max);
    let (marks, share): (Vec<f64>, Box<dyn Fn(f64) -> f64>) = match panel.scale {
        Scale::Linear => {
            let most = most * 1.1;
            ((0..=4).map(|part| most * f64::from(part) / 4.0).collect(), Box::new(move |value| value / most))
        }
        Scale::Tens => {
            let tens = most.log10().ceil().max(1.0);
            let marks = (0..=4).map(f64::from).filter(|ten| *ten <= tens).map(|ten| 10_f64.powf(ten));
            (marks.collect(), Box::new(move |value| value.max(1.0).log10() / tens))
        }
    };
    let y = |value: f64| top + PANEL * (1.0 - share(value).clamp(0.0, 1.0));
    for mark in marks {
        line(svg, (x(0.0), y(mark)), (x(length), y(mark)), "#eef0f2");
        text(svg, 20.0, y(mark) + 4.0, &format!("{mark:.0}"));
    }
    text(svg, LEFT, top - 6.0, panel.title);
    for (number, (name, points)) in panel.lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<_> = points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        put(svg, format_args!("<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>", points.join(" ")));
        let at = LEFT + 200.0 + number as f64 * 150.0;
        put(svg, format_args!("<text x=\"{at}\" y=\"{}\" fill=\"{colour}\">{name}</text>", top - 6.0));
    }
    for mark in 0..=10_u8 {
        let at = length * f64::from(mark) / 10.0;
        text(svg, x(at) - 8.0, top + PANEL + 16.0, &format!("{at:.0} s"));
    }
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    put(svg, format_args!("<path stroke=\"{colour}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>"));
}

fn text(svg: &mut String, x: f64, y: f64, text: &str) {
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#5d646d\">{text}</text>"));
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("writing to a String cannot fail");
}
