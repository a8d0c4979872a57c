//! The curves as one SVG: a panel for each dimension, read in light and in dark.
//!
//! Written by hand: two axes, lines, dots and whiskers are a few lines, and what a library would draw could not be told which
//! colours to take in the dark.

use std::fmt::Write as _;

use load::stats::{real, shown};

use crate::{
    curves,
    points::Dimension,
    results::{Curve, Document, Measured},
};

const PANEL: (f64, f64) = (480.0, 270.0);
const COLUMNS: usize = 2;
const TOP: f64 = 64.0;
/// Around the plot within its panel: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (52.0, 34.0, 62.0, 46.0);
/// Lines across a plot.
const STEPS: u64 = 4;

/// A line of a panel: key of its figure, its class and name.
type Series = (&'static str, &'static str, &'static str);

const COSTS: [Series; 4] = [
    ("engine_cpu", "engine", "engine"),
    ("sink_cpu", "sink", "sink (second engine)"),
    ("clickhouse_cpu", "clickhouse", "ClickHouse"),
    ("broker_cpu", "broker", "broker (Tansu)"),
];
const PER_GIGABYTE: [Series; 2] = [("engine_gb", "engine", "engine"), ("clickhouse_gb", "clickhouse", "ClickHouse")];

// Without variables, which not every viewer knows; each colour is readable on its background.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #656d76; }
.title { font-size: 14px; font-weight: 600; fill: #1f2328; }
.back { fill: #ffffff; } .grid { stroke: #d0d7de; } .whisker { stroke-width: 1; } polyline { fill: none; stroke-width: 2; }
.engine { stroke: #0969da; } .sink { stroke: #8250df; } .clickhouse { stroke: #bc4c00; } .broker { stroke: #6e7781; }
.rate { stroke: #1a7f37; } polyline.rate { stroke-dasharray: 5 4; }
circle.engine { fill: #0969da; } circle.sink { fill: #8250df; } circle.clickhouse { fill: #bc4c00; }
circle.broker { fill: #6e7781; } circle.rate { fill: #1a7f37; }
@media (prefers-color-scheme: dark) {
text { fill: #8d96a0; } .title { fill: #e6edf3; } .back { fill: #0d1117; } .grid { stroke: #30363d; }
.engine { stroke: #58a6ff; } .sink { stroke: #bc8cff; } .clickhouse { stroke: #f0883e; } .broker { stroke: #8b949e; }
.rate { stroke: #3fb950; }
circle.engine { fill: #58a6ff; } circle.sink { fill: #bc8cff; } circle.clickhouse { fill: #f0883e; }
circle.broker { fill: #8b949e; } circle.rate { fill: #3fb950; }
}
";

/// Draws everything that was measured.
pub fn svg(document: &Document) -> String {
    let mut panels: Vec<(String, &Curve, &[Series], &str)> = Vec::new();
    for (dimension, curve) in Dimension::ALL.into_iter().filter_map(|one| Some((one, document.curve(one)?))) {
        panels.push((dimension.title().to_owned(), curve, &COSTS, "CPU s a million events"));
        if dimension == Dimension::Size {
            panels.push(("Size of an event, by the byte".to_owned(), curve, &PER_GIGABYTE, "CPU s a GB"));
        }
    }
    let (width, height) = PANEL;
    let rows = panels.len().div_ceil(COLUMNS);
    let (all_width, all_height) = (width * count(COLUMNS), TOP + height * count(rows));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_width} {all_height}\" role=\"img\" \
         aria-label=\"Cost of an event\">\n<style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"{all_width}\" height=\"{all_height}\"/>\n"
    );
    legend(&mut text);
    for (index, (title, curve, series, unit)) in panels.iter().enumerate() {
        let at = (width * count(index % COLUMNS), TOP + height * count(index / COLUMNS));
        panel(&mut text, at, title, curve, series, unit);
    }
    text + "</svg>\n"
}

fn count(number: usize) -> f64 {
    real(number as u64)
}

// Writing to a String cannot fail.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").unwrap_or(());
}

fn legend(text: &mut String) {
    line(text, format_args!("<text class=\"title\" x=\"16\" y=\"24\">What an event costs</text>"));
    let rate = ("rate", "rate", "events/s (right axis)");
    let mut x = 16.0;
    for (_, class, name) in COSTS.iter().chain([&rate]) {
        line(text, format_args!("<polyline class=\"{class}\" points=\"{x},44 {},44\"/>", x + 24.0));
        line(text, format_args!("<text x=\"{}\" y=\"48\">{name}</text>", x + 30.0));
        x += 52.0 + 7.0 * count(name.len());
    }
}

/// Whether they are things and no numbers: there is nothing between two of them.
fn are_named(points: &[Measured]) -> bool {
    points.iter().any(|point| point.label.starts_with(char::is_alphabetic))
}

/// Where the points of a curve stand, from 0 to 1: by the logarithm, or side by side where there is none. A zero stands a
/// little before the first number.
fn places(points: &[Measured]) -> Vec<f64> {
    let least = points.iter().map(|point| point.x).filter(|x| *x > 0.0).fold(f64::INFINITY, f64::min);
    let named = are_named(points);
    let logarithm = |(index, point): (usize, &Measured)| match point.x {
        _ if named => count(index),
        zero if zero <= 0.0 => least.log10() - 1.0,
        x => x.log10(),
    };
    let raw: Vec<f64> = points.iter().enumerate().map(logarithm).collect();
    let from = raw.iter().copied().fold(f64::INFINITY, f64::min);
    let to = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    raw.iter().map(|at| if to > from { (at - from) / (to - from) } else { 0.5 }).collect()
}

/// The end of an axis that has room for `most`: one, two, two and a half or five times a power of ten, in even steps.
fn axis_end(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|times| times * power).find(|end| *end >= most).unwrap_or(most)
}

fn panel(text: &mut String, (x, y): (f64, f64), title: &str, curve: &Curve, series: &[Series], unit: &str) {
    let (left, top, right, bottom) = MARGIN;
    let (x0, x1) = (x + left + 12.0, x + PANEL.0 - right - 12.0);
    let (y0, y1) = (y + PANEL.1 - bottom, y + top);
    let most_of = |key: &str| {
        let values = curve.points.iter().filter_map(|point| {
            let most = point.figures.get(key).map(|figure| figure.most);
            most.or_else(|| curves::value(point, key))
        });
        values.fold(0.0, f64::max)
    };
    let cost = axis_end(series.iter().map(|(key, ..)| most_of(key)).fold(0.0, f64::max));
    let rate = axis_end(most_of("rate"));

    line(text, format_args!("<text class=\"title\" x=\"{}\" y=\"{}\">{title}</text>", x + 16.0, y + 18.0));
    line(text, format_args!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{unit}</text>", x1 + 12.0, y + 18.0));
    for step in 0..=STEPS {
        let share = real(step) / real(STEPS);
        let at = y0 + (y1 - y0) * share;
        let (first, last) = (x0 - 12.0, x1 + 12.0);
        line(text, format_args!("<line class=\"grid\" x1=\"{first}\" y1=\"{at:.1}\" x2=\"{last}\" y2=\"{at:.1}\"/>"));
        let (cost, rate) = (tick(cost * share), tick(rate * share));
        line(text, format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{cost}</text>", first - 6.0, at + 4.0));
        line(text, format_args!("<text x=\"{}\" y=\"{:.1}\">{rate}</text>", last + 6.0, at + 4.0));
    }
    let places = places(&curve.points);
    for (place, point) in places.iter().zip(&curve.points) {
        let (at, label) = (x0 + (x1 - x0) * place, &point.label);
        line(text, format_args!("<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", y0 + 18.0));
    }
    let with_rate = series.iter().map(|series| (series, cost)).chain([(&("rate", "rate", ""), rate)]);
    for ((key, class, _), end) in with_rate {
        let height = |value: f64| y0 + (y1 - y0) * (value / end).clamp(0.0, 1.0);
        let mut points = Vec::new();
        for (place, point) in places.iter().zip(&curve.points) {
            let Some(value) = curves::value(point, key) else { continue };
            let (at, up) = (x0 + (x1 - x0) * place, height(value));
            if let Some(figure) = point.figures.get(*key) {
                let (low, high) = (height(figure.least), height(figure.most));
                line(
                    text,
                    format_args!(
                        "<line class=\"whisker {class}\" x1=\"{at:.1}\" y1=\"{low:.1}\" x2=\"{at:.1}\" y2=\"{high:.1}\"/>"
                    ),
                );
            }
            line(text, format_args!("<circle class=\"{class}\" cx=\"{at:.1}\" cy=\"{up:.1}\" r=\"3\"/>"));
            points.push(format!("{at:.1},{up:.1}"));
        }
        if points.len() > 1 && !are_named(&curve.points) {
            line(text, format_args!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")));
        }
    }
}

/// A number on an axis: short.
fn tick(value: f64) -> String {
    match value {
        zero if zero <= 0.0 => "0".to_owned(),
        thousands if thousands >= 1000.0 => format!("{}k", trimmed(thousands / 1000.0)),
        other => trimmed(other),
    }
}

fn trimmed(value: f64) -> String {
    let text = shown(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::{axis_end, tick};

    #[test]
    fn an_axis_ends_at_a_round_number_above_its_values() {
        for (most, end) in [(0.0, 1.0), (7.3, 8.0), (10.0, 10.0), (11.0, 20.0), (130_000.0, 200_000.0)] {
            assert!((axis_end(most) - end).abs() < 1e-6, "{most}");
        }
        assert_eq!((tick(0.0), tick(2.5), tick(150_000.0)), ("0".to_owned(), "2.5".to_owned(), "150k".to_owned()));
    }
}
