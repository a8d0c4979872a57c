//! The figures, as they are kept in a file.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{
    measure::Figures,
    options::Options,
    points::{Dimension, Point},
};

/// Every curve by the key of its dimension.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Document {
    pub curves: BTreeMap<String, Curve>,
}

/// One dimension.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Curve {
    /// On what, when and of which revision: curves may have been measured on different days.
    pub measured: BTreeMap<String, String>,
    pub points: Vec<Measured>,
    /// Points that failed, and why.
    pub failed: Vec<String>,
    /// Points that were left out, and why.
    pub left_out: Vec<String>,
}

/// One point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub x: f64,
    pub label: String,
    pub figures: BTreeMap<String, Figure>,
}

/// What the runs gave for one figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub samples: Vec<f64>,
}

impl Figure {
    fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) };
        Self { median, least: at(0), most: at(sorted.len().saturating_sub(1)), samples: samples.to_vec() }
    }
}

impl Measured {
    /// The median of a figure.
    pub fn median(&self, key: &str) -> Option<f64> {
        self.figures.get(key).map(|figure| figure.median)
    }
}

impl Document {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} has no figures", path.display()))
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn curve(&self, dimension: Dimension) -> Option<&Curve> {
        self.curves.get(dimension.key()).filter(|curve| !curve.points.is_empty())
    }

    /// A median, by dimension and label of the point.
    pub fn median(&self, dimension: Dimension, label: &str, key: &str) -> Option<f64> {
        self.curve(dimension)?.points.iter().find(|point| point.label == label)?.median(key)
    }
}

/// What was measured so far.
#[derive(Default)]
pub struct Samples {
    of: BTreeMap<Dimension, OfDimension>,
}

#[derive(Default)]
struct OfDimension {
    /// In the order of their first measurement.
    points: Vec<OfPoint>,
    failed: Vec<String>,
    left_out: Vec<String>,
}

struct OfPoint {
    x: f64,
    label: String,
    figures: BTreeMap<&'static str, Vec<f64>>,
}

impl Samples {
    pub fn add(&mut self, dimension: Dimension, point: &Point, figures: Figures) {
        let points = &mut self.of.entry(dimension).or_default().points;
        let known = points.iter().position(|known| known.label == point.label);
        if known.is_none() {
            points.push(OfPoint { x: point.x, label: point.label.clone(), figures: BTreeMap::new() });
        }
        let place = known.unwrap_or(points.len() - 1);
        let Some(known) = points.get_mut(place) else { return };
        // What cannot be reckoned (nothing by nothing) has no place in JSON.
        for (key, value) in figures.into_iter().filter(|(_, value)| value.is_finite()) {
            known.figures.entry(key).or_default().push(value);
        }
    }

    pub fn fail(&mut self, dimension: Dimension, what: String) {
        self.of.entry(dimension).or_default().failed.push(what);
    }

    pub fn skip(&mut self, dimension: Dimension, what: String) {
        self.of.entry(dimension).or_default().left_out.push(what);
    }

    pub fn failed(&self) -> Vec<&str> {
        self.of.values().flat_map(|of| of.failed.iter().map(String::as_str)).collect()
    }

    /// The figures of now, beside those that the file has of other dimensions. `machine` is as it was when they were begun: what is
    /// written changes the working copy.
    pub fn document(&self, options: &Options, machine: &[(&'static str, String)]) -> anyhow::Result<Document> {
        let mut document = if options.json.exists() { Document::read(&options.json)? } else { Document::default() };
        let machine = machine.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let settings = [("runs", options.runs), ("seconds", options.seconds)];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_string()));
        let measured: BTreeMap<String, String> = machine.chain(settings).collect();
        for (dimension, of) in &self.of {
            let points = of.points.iter().map(|point| Measured {
                x: point.x,
                label: point.label.clone(),
                figures: point.figures.iter().map(|(key, samples)| ((*key).to_owned(), Figure::of(samples))).collect(),
            });
            let mut points: Vec<Measured> = points.collect();
            points.sort_by(|one, other| one.x.total_cmp(&other.x));
            let (failed, left_out) = (of.failed.clone(), of.left_out.clone());
            let curve = Curve { measured: measured.clone(), points, failed, left_out };
            document.curves.insert(dimension.key().to_owned(), curve);
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::Figure;

    #[test]
    fn the_median_is_of_the_runs() {
        let figure = Figure::of(&[3.0, 1.0, 2.0]);
        assert!((figure.median - 2.0).abs() < 1e-9 && (figure.least - 1.0).abs() < 1e-9, "{figure:?}");
        assert!((Figure::of(&[4.0, 2.0]).median - 3.0).abs() < 1e-9);
    }
}
