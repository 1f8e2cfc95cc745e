//! Draws what is allocated as pods arrive, a line for each policy.

use std::path::Path;

use plotters::prelude::*;

/// A policy's name, and what had come and what was allocated, in percent.
pub(crate) type Curve<'a> = (&'static str, &'a Vec<(f64, f64)>);

/// Draws to an SVG file.
///
/// # Errors
/// A file that can't be written.
pub(crate) fn draw(file: &Path, curves: &[Curve<'_>]) -> anyhow::Result<()> {
    let mut drawing = String::new();
    lines(&mut drawing, curves).map_err(|error| anyhow::anyhow!("{error}"))?;
    std::fs::write(file, drawing)?;
    Ok(())
}

type Failed<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn lines<'a>(to: &'a mut String, curves: &[Curve<'_>]) -> Result<(), Failed<'a>> {
    let points = || curves.iter().flat_map(|(_, points)| points.iter());
    let right = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let area = SVGBackend::with_string(to, (900, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("asked for, in percent of all units")
        .y_desc("allocated, in percent of all units")
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    area.present()
}

/// Told apart without seeing red and green (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(120, 120, 120),
];
