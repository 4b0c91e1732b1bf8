//! Drawings of a report, as SVG for light and dark pages.
//!
//! Written by hand: two drawings need less code than a library, and no library that was tried
//! follows the reader's colour scheme.

use std::fmt::Write;

use super::report::{Bar, Curve, Report, Row};

const WIDTH: f64 = 900.0;

/// Draws each figure that has a bar, as a multiple of its bar.
pub fn bars(report: &Report) -> String {
    const LINE: f64 = 24.0;
    const TOP: f64 = 64.0;
    let rows: Vec<(&Row, Bar)> =
        report.rows.iter().filter_map(|row| Some((row, row.bar?))).collect();
    let axis = Axis::new(340.0, 700.0, 0.1, 20.0);
    let mut drawing = Drawing::new("Figures as multiples of their bars: further right is better");
    for tick in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0] {
        let x = axis.place(tick);
        let bottom = TOP + LINE * count(rows.len());
        drawing.line(if is(tick, 1.0) { "bar" } else { "grid" }, (x, TOP), (x, bottom));
        drawing.text("tick middle", (x, TOP - 8.0), &format!("{tick}×"));
    }
    for (place, (row, bar)) in rows.iter().enumerate() {
        let y = TOP + LINE * count(place);
        let reach = axis.place(bar.times(row.judged()));
        let class = if row.meets_bar() { "met" } else { "missed" };
        let name = format!("{}: {}", row.scenario, row.figure);
        drawing.text("end", (330.0, y + 16.0), &shortened(&name, 46));
        drawing.rect(class, (axis.from, y + 5.0), (reach - axis.from, LINE - 10.0));
        if let Some(want) = row.want.map(Bar::value) {
            let x = axis.place(bar.times(want));
            drawing.line("want", (x, y + 2.0), (x, y + LINE - 2.0));
        }
        drawing.text("", (710.0, y + 16.0), &row.verdict());
    }
    let bottom = TOP + LINE * count(rows.len());
    drawing.text("tick", (340.0, bottom + 24.0), "┃ 1×: the bar   ╎ the target");
    drawing.finish(bottom + 40.0)
}

/// Draws the distribution of latencies.
pub fn latencies(curves: &[Curve]) -> String {
    const TOP: f64 = 64.0;
    const BOTTOM: f64 = 380.0;
    let all = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.1);
    let least = all().filter(|ms| *ms > 0.0).fold(1.0_f64, f64::min);
    let most = all().fold(10.0_f64, f64::max);
    let time = Axis::new(BOTTOM, TOP, decade(least).max(0.01), decade(most) * 10.0);
    let share = |share: f64| 90.0 + -(1.0 - share).max(0.000_1).log10() * 150.0;
    let mut drawing = Drawing::new("Latency in milliseconds, by percentile");
    for (at, name) in [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")]
    {
        drawing.line("grid", (share(at), TOP), (share(at), BOTTOM));
        drawing.text("tick middle", (share(at), BOTTOM + 20.0), name);
    }
    let mut tick = time.least;
    while tick <= time.most * 1.001 {
        drawing.line("grid", (90.0, time.place(tick)), (690.0, time.place(tick)));
        drawing.text("tick end", (80.0, time.place(tick) + 4.0), &format!("{tick}"));
        tick *= 10.0;
    }
    for (place, curve) in curves.iter().enumerate() {
        let class = format!("series-{}", place % 4);
        // The maximum is one message, not a percentile.
        let shown = curve.points.iter().filter(|point| point.0 < 1.0 && point.1 > 0.0);
        let points: Vec<_> = shown.map(|(at, ms)| (share(*at), time.place(*ms))).collect();
        drawing.path(&class, &points);
        let y = BOTTOM + 52.0 + 20.0 * count(place);
        drawing.path(&class, &[(90.0, y - 4.0), (120.0, y - 4.0)]);
        let name = format!("{} ({}): {} messages", curve.figure, curve.scenario, curve.count);
        drawing.text("", (130.0, y), &name);
    }
    drawing.finish(BOTTOM + 52.0 + 20.0 * count(curves.len()))
}

/// A logarithmic scale between two places.
struct Axis {
    from: f64,
    to: f64,
    least: f64,
    most: f64,
}

impl Axis {
    fn new(from: f64, to: f64, least: f64, most: f64) -> Self {
        Self { from, to, least, most }
    }

    /// Returns the place of a value. One that is off the scale is at its end.
    fn place(&self, value: f64) -> f64 {
        let value = if value.is_finite() { value.clamp(self.least, self.most) } else { self.least };
        let share = (value / self.least).log10() / (self.most / self.least).log10();
        self.from + (self.to - self.from) * share
    }
}

struct Drawing(String);

// Writing to memory does not fail.
impl Drawing {
    fn new(title: &str) -> Self {
        let mut drawing = Self(String::new());
        drawing.text("title", (16.0, 28.0), title);
        drawing
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.0,
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        );
    }

    fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let width = width.max(1.0);
        let _ = writeln!(
            self.0,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        );
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.0, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
    }

    fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.0, r#"<polyline class="{class}" points="{}"/>"#, points.join(" "));
    }

    fn finish(self, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{}</svg>\n",
            self.0
        )
    }
}

const STYLE: &str = "
svg { --page: #fff; --ink: #1f2328; --dim: #59636e; --grid: #d8dee4; --good: #1a7f5a; --bad: #c4432b;
  --a: #0b62c4; --b: #b35900; --c: #7a3fb8; --d: #1a7f5a }
@media (prefers-color-scheme: dark) { svg { --page: #0d1117; --ink: #e6edf3; --dim: #9198a1;
  --grid: #30363d; --good: #3fb68b; --bad: #f0705a; --a: #58a6ff; --b: #e3963e; --c: #bf8cf5;
  --d: #3fb68b } }
text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.title { font-size: 15px; font-weight: 600 }
.tick { fill: var(--dim) }
.middle { text-anchor: middle }
.end { text-anchor: end }
.page { fill: var(--page) }
.grid { stroke: var(--grid) }
.bar { stroke: var(--ink); stroke-width: 2 }
.want { stroke: var(--ink); stroke-dasharray: 3 2 }
.met { fill: var(--good) }
.missed { fill: var(--bad) }
polyline { fill: none; stroke-width: 2 }
.series-0 { stroke: var(--a) }
.series-1 { stroke: var(--b) }
.series-2 { stroke: var(--c) }
.series-3 { stroke: var(--d) }
";

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Returns the largest power of ten that is not larger.
fn decade(value: f64) -> f64 {
    10.0_f64.powf(value.log10().floor())
}

fn is(left: f64, right: f64) -> bool {
    left.total_cmp(&right).is_eq()
}

#[expect(clippy::cast_precision_loss, reason = "some dozens")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Machine, Run, Spread};

    #[test]
    fn a_figure_is_drawn_as_a_multiple_of_its_bar() {
        let mut report = Report::new(Run::default(), Machine::default());
        report.rows = vec![
            Row::new("a", "rate", "/s", Spread::once(40.0)).at_least(20.0, 60.0),
            Row::new("b", "<p99>", "ms", Spread::once(40.0)).at_most(20.0, 10.0),
        ];

        let drawing = bars(&report);

        let axis = Axis::new(340.0, 700.0, 0.1, 20.0);
        let width = |times| format!(r#"width="{:.1}""#, axis.place(times) - 340.0);
        assert!(drawing.contains(&format!(r#"class="met" x="340.0" y="69.0" {}"#, width(2.0))));
        assert!(drawing.contains(&format!(r#"class="missed" x="340.0" y="93.0" {}"#, width(0.5))));
        assert!(drawing.contains("b: &lt;p99>"));
    }

    #[test]
    fn a_longer_latency_is_drawn_higher() {
        let curve = Curve::new("latency", "all", vec![1_000, 2_000, 4_000, 8_000]);

        let drawing = latencies(&[curve]);

        let points =
            drawing.split_once("series-0\" points=\"").unwrap().1.split_once('"').unwrap().0;
        let heights: Vec<f64> =
            points.split(' ').map(|it| it.split_once(',').unwrap().1.parse().unwrap()).collect();
        assert!(heights.len() > 10 && heights.is_sorted_by(|left, right| left >= right));
        assert!(heights[0] > heights[heights.len() - 1]);
    }
}
