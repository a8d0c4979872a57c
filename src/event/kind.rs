//! The built-in event types: what each of them has beside the common fields, and what it must have.

use super::{error::EventError, field::Field};
use crate::row::{EventRow, Text};

/// Most bytes of a title, an element or an event name.
const LABEL_BYTES: usize = 1024;
/// Most bytes of a selector or an element's text.
const LONG_TEXT_BYTES: usize = 8192;
/// A page's timings in milliseconds: at most a day, far above any real one.
const MOST_MILLISECONDS: f64 = 86_400_000.0;
/// Coordinates in CSS pixels: no page is longer, negative ones occur when a page bounces.
const MOST_PIXELS: f64 = 10_000_000.0;

/// A page or screen was shown. Needs `url` or `path`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pageview<'a> {
    pub title: Text<'a>,
    pub load_time_ms: Option<f64>,
}

/// Something was clicked. Needs one of `element`, `selector`, `text`, or both of `x` and `y`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Click<'a> {
    pub element: Text<'a>,
    pub selector: Text<'a>,
    pub text: Text<'a>,
    pub x: Option<f64>,
    pub y: Option<f64>,
}

/// The page was scrolled. Needs `depth`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scroll<'a> {
    pub depth: Option<f64>,
    pub direction: Text<'a>,
}

/// Timings of a page, in milliseconds except `cls`. Needs at least one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Performance {
    pub lcp: Option<f64>,
    pub fid: Option<f64>,
    pub inp: Option<f64>,
    pub cls: Option<f64>,
    pub ttfb: Option<f64>,
    pub fcp: Option<f64>,
    pub dom_content_loaded: Option<f64>,
    pub load_complete: Option<f64>,
}

/// Anything else that a product does. Needs `name`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Custom<'a> {
    pub name: Text<'a>,
}

/// The event's type with what only this type has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    Pageview(Pageview<'a>),
    Click(Click<'a>),
    Scroll(Scroll<'a>),
    Performance(Performance),
    Custom(Custom<'a>),
    /// A type that a plugin added: whatever it has beside the common fields is a property.
    Added,
}

impl<'a> Kind<'a> {
    pub const NAMES: [&'static str; 5] = ["pageview", "click", "scroll", "performance", "custom"];

    /// An empty event of the type `name`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pageview" => Self::Pageview(Pageview::default()),
            "click" => Self::Click(Click::default()),
            "scroll" => Self::Scroll(Scroll::default()),
            "performance" => Self::Performance(Performance::default()),
            "custom" => Self::Custom(Custom::default()),
            _ => return None,
        })
    }

    /// The fields that the type has of its own.
    pub const fn fields(&self) -> &'static [&'static str] {
        match self {
            Self::Pageview(_) => &["title", "load_time_ms"],
            Self::Click(_) => &["element", "selector", "text", "x", "y"],
            Self::Scroll(_) => &["depth", "direction"],
            Self::Performance(_) => &["lcp", "fid", "inp", "cls", "ttfb", "fcp", "dom_content_loaded", "load_complete"],
            Self::Custom(_) => &["name"],
            Self::Added => &[],
        }
    }

    /// Takes a field of its own ([`Kind::fields`]).
    pub fn set(&mut self, field: &Field<'a>) -> Result<(), EventError> {
        let time = || field.number(0.0, MOST_MILLISECONDS).map(Some);
        let pixels = || field.number(-MOST_PIXELS, MOST_PIXELS).map(Some);
        match (self, field.name.as_ref()) {
            (Self::Pageview(page), "title") => page.title = field.text(LABEL_BYTES)?,
            (Self::Pageview(page), "load_time_ms") => page.load_time_ms = time()?,
            (Self::Click(click), "element") => click.element = field.text(LABEL_BYTES)?,
            (Self::Click(click), "selector") => click.selector = field.text(LONG_TEXT_BYTES)?,
            (Self::Click(click), "text") => click.text = field.text(LONG_TEXT_BYTES)?,
            (Self::Click(click), "x") => click.x = pixels()?,
            (Self::Click(click), "y") => click.y = pixels()?,
            (Self::Scroll(scroll), "depth") => scroll.depth = field.number(0.0, 100.0).map(Some)?,
            (Self::Scroll(scroll), "direction") => scroll.direction = field.one_of(&["up", "down", "left", "right"])?,
            (Self::Performance(vitals), "lcp") => vitals.lcp = time()?,
            (Self::Performance(vitals), "fid") => vitals.fid = time()?,
            (Self::Performance(vitals), "inp") => vitals.inp = time()?,
            // A sum of shift scores without unit; real pages stay below 10.
            (Self::Performance(vitals), "cls") => vitals.cls = field.number(0.0, 1000.0).map(Some)?,
            (Self::Performance(vitals), "ttfb") => vitals.ttfb = time()?,
            (Self::Performance(vitals), "fcp") => vitals.fcp = time()?,
            (Self::Performance(vitals), "dom_content_loaded") => vitals.dom_content_loaded = time()?,
            (Self::Performance(vitals), "load_complete") => vitals.load_complete = time()?,
            (Self::Custom(custom), "name") => custom.name = field.text(LABEL_BYTES)?,
            (kind, _) => debug_assert!(false, "{kind:?} has no field {}", field.name),
        }
        Ok(())
    }

    /// Moves what this type has into `row` and checks that what it must have is there.
    pub fn finish(self, row: &mut EventRow<'a>) -> Result<(), EventError> {
        match self {
            Self::Pageview(page) => {
                if row.path.is_empty() && row.url.is_empty() {
                    return Err(EventError::missing("a pageview needs \"path\" or \"url\""));
                }
                row.title = page.title;
                row.load_time_ms = page.load_time_ms;
            }
            Self::Click(click) => {
                let named = ![&click.element, &click.selector, &click.text].iter().all(|text| text.is_empty());
                if !named && (click.x.is_none() || click.y.is_none()) {
                    return Err(EventError::missing(
                        "a click needs \"element\", \"selector\" or \"text\", or both \"x\" and \"y\"",
                    ));
                }
                (row.element, row.selector, row.text) = (click.element, click.selector, click.text);
                (row.x, row.y) = (click.x, click.y);
            }
            Self::Scroll(scroll) => {
                if scroll.depth.is_none() {
                    return Err(EventError::missing("a scroll needs \"depth\", in percent from 0 to 100"));
                }
                (row.depth, row.direction) = (scroll.depth, scroll.direction);
            }
            Self::Performance(vitals) => {
                if vitals == Performance::default() {
                    return Err(EventError::missing(
                        "a performance event needs at least one of \"lcp\", \"fid\", \"inp\", \"cls\", \"ttfb\", \"fcp\", \
                         \"dom_content_loaded\", \"load_complete\"",
                    ));
                }
                (row.lcp, row.fid, row.inp, row.cls) = (vitals.lcp, vitals.fid, vitals.inp, vitals.cls);
                (row.ttfb, row.fcp) = (vitals.ttfb, vitals.fcp);
                (row.dom_content_loaded, row.load_complete) = (vitals.dom_content_loaded, vitals.load_complete);
            }
            Self::Custom(custom) => {
                if custom.name.is_empty() {
                    return Err(EventError::missing("a custom event needs \"name\""));
                }
                row.name = custom.name;
            }
            Self::Added => {}
        }
        Ok(())
    }
}
