//! Tenants, and request bodies that are made before the clock runs.
//!
//! A body is a template whose ids, sessions, users and timestamps have fixed places. Sending one is a copy and a few
//! writes into those places: about a tenth of a CPU second for a million events, so that the generator takes little of
//! the machine that it shares with the server.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// Event types, with their share in a hundred.
pub const KINDS: [(&str, u32); 5] =
    [("pageview", 60), ("click", 20), ("scroll", 10), ("performance", 5), ("custom", 5)];
pub const PAGEVIEW: u8 = 0;
pub const PERFORMANCE: u8 = 3;

/// Memory for templates. Enough that their repetition is far outside any compressor's window.
const TEMPLATE_BYTES: usize = 48 << 20;

const UUID_PLACE: &str = "00000000-0000-0000-0000-000000000000";
const USER_PLACE: &str = "u00000000";
const TIMESTAMP_PLACE: &str = "1970-01-01T00:00:00.000Z";

/// The `index`-th tenant: the same in every run, so that one configuration serves many.
pub fn tenant_id(index: u32) -> Uuid {
    Uuid::from_u128(0x10ad_7e57_0000_4000_8000_0000_0000_0000 + u128::from(index))
}

/// The number of the tenant with that id.
pub fn tenant_index(id: Uuid) -> u32 {
    u32::try_from(id.as_u64_pair().1 & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// The key of the `index`-th tenant.
pub fn tenant_key(index: u32) -> String {
    format!("load-{index:04}-{}", sha256_hex(&format!("key of tenant {index}")).get(..16).unwrap_or(""))
}

fn sha256_hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The tenants' file for the engine.
pub fn tenant_config(tenants: u32) -> String {
    let section = |index| {
        let (id, hash) = (tenant_id(index), sha256_hex(&tenant_key(index)));
        format!("\n[[tenants]]\nid = \"{id}\"\nname = \"load-{index:04}\"\n[[tenants.keys]]\nsha256 = \"{hash}\"\n")
    };
    let sections: Vec<String> = (0..tenants).map(section).collect();
    format!("# Tenants of the load generator (benches/load). Their keys are public.\n{}", sections.concat())
}

/// What events are like, where they are not as they come: all types, about 330 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// All of this type.
    pub kind: Option<u8>,
    /// Each of about so many bytes, the comma after it included.
    pub bytes: Option<usize>,
    /// What fills them up: text, which a compressor halves about; with this letters at random, which LZ4 leaves as they are.
    pub noise: bool,
}

/// Below this size an event has no room for more than an id, a type and a path.
const SMALL: usize = 300;

/// Where in a template the parts of one event are.
struct Places {
    id: usize,
    seat: Option<Seat>,
    kind: u8,
}

/// Who and when: what the smallest events leave out.
struct Seat {
    session: usize,
    user: usize,
    timestamp: usize,
}

/// The body of a request, but for what differs each time.
pub struct Template {
    pub bytes: Vec<u8>,
    events: Vec<Places>,
}

impl Template {
    /// Size of one event, the commas and the array's share included.
    pub fn bytes_per_event(&self) -> f64 {
        let count = |length: usize| f64::from(u32::try_from(length).unwrap_or(u32::MAX));
        count(self.bytes.len()) / count(self.events.len())
    }

    /// The type of the event at `index`.
    pub fn kind(&self, index: usize) -> u8 {
        self.events.get(index).map_or(0, |event| event.kind)
    }
}

/// Makes as many templates of `batch` events as fit the memory set aside for them.
pub fn templates(batch: usize, shape: Shape) -> Vec<Template> {
    // The content is the same in every run, so that runs can be compared.
    let mut rng = SmallRng::seed_from_u64(7);
    let mut templates = Vec::new();
    let mut bytes = 0;
    while templates.len() < 8 || (bytes < TEMPLATE_BYTES && templates.len() < 1024) {
        let template = template(batch, shape, &mut rng);
        bytes += template.bytes.len();
        templates.push(template);
    }
    templates
}

fn template(batch: usize, shape: Shape, rng: &mut SmallRng) -> Template {
    let mut text = String::from("{\"events\":[");
    let mut events = Vec::with_capacity(batch);
    for index in 0..batch {
        text.push_str(if index == 0 { "" } else { "," });
        let place = match shape.bytes {
            Some(bytes) if bytes < SMALL => small(&mut text, bytes, rng),
            _ => event(&mut text, shape, rng),
        };
        events.push(place);
    }
    text.push_str("]}");
    Template { bytes: text.into_bytes(), events }
}

fn pick<'a>(rng: &mut SmallRng, words: &[&'a str]) -> &'a str {
    words.get(rng.random_range(0..words.len())).copied().unwrap_or("")
}

/// A page of a site of 2,000: the one of rank n is asked for about 1/n times as often as the first.
fn page(rng: &mut SmallRng) -> usize {
    const PAGES: f64 = 2000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 2,000")]
    let page = PAGES.powf(rng.random_range(0.0..1.0)) as usize;
    page
}

fn kind(rng: &mut SmallRng) -> u8 {
    let mut draw = rng.random_range(0..100);
    for (index, (_, share)) in (0_u8..).zip(KINDS) {
        if draw < share {
            return index;
        }
        draw -= share;
    }
    0
}

/// Appends what is filled in later; gives where its value begins.
fn place(text: &mut String, name: &str, place: &str) -> usize {
    text.push_str(name);
    let at = text.len();
    text.push_str(place);
    text.push('"');
    at
}

/// Appends `length` letters that say nothing: words, of which some come often and most seldom, or noise.
fn fill(text: &mut String, length: usize, noise: bool, rng: &mut SmallRng) {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let letter = |number: u32| char::from(LETTERS.get(number as usize % LETTERS.len()).copied().unwrap_or(b'-'));
    let end = text.len() + length;
    while text.len() < end {
        if noise {
            text.push(letter(rng.next_u32()));
            continue;
        }
        // The same word for the same rank.
        let mut word = SmallRng::seed_from_u64(page(rng) as u64);
        for _ in 0..word.random_range(3..10).min(end - text.len()) {
            text.push(letter(word.random_range(0..26)));
        }
        text.push(' ');
    }
    text.truncate(end);
}

/// Appends an event of an id, a type and a path, of `bytes` bytes with its comma.
fn small(text: &mut String, bytes: usize, rng: &mut SmallRng) -> Places {
    let begin = text.len();
    let id = place(text, "{\"id\":\"", UUID_PLACE);
    text.push_str(",\"type\":\"pageview\",\"path\":\"/");
    text.push_str(&page(rng).to_string());
    text.push('/');
    let rest = bytes.saturating_sub(text.len() - begin + "\"},".len());
    fill(text, rest, false, rng);
    text.push_str("\"}");
    Places { id, seat: None, kind: PAGEVIEW }
}

/// Appends one event, shaped like those of a shop's web site: about 330 bytes on average.
fn event(text: &mut String, shape: Shape, rng: &mut SmallRng) -> Places {
    const SECTIONS: [&str; 8] =
        ["products", "category", "blog", "help", "account/orders", "checkout", "search", "brands"];
    const WORDS: [&str; 16] = [
        "blue", "winter", "jacket", "running", "shoes", "classic", "leather", "summer", "linen", "shirt", "sale",
        "new", "cotton", "denim", "outdoor", "light",
    ];
    const REFERRERS: [&str; 5] =
        ["https://www.google.com/", "https://duckduckgo.com/", "https://www.instagram.com/", "https://t.co/x7Fq2", ""];
    let begin = text.len();
    let drawn = kind(rng);
    let kind = shape.kind.unwrap_or(drawn);
    let id = place(text, "{\"id\":\"", UUID_PLACE);
    let session = place(text, ",\"session_id\":\"", UUID_PLACE);
    let user = place(text, ",\"user_id\":\"", USER_PLACE);
    let timestamp = place(text, ",\"timestamp\":\"", TIMESTAMP_PLACE);

    let page = page(rng);
    let of = |words: &[&'static str], number: usize| words.get(number % words.len()).copied().unwrap_or("");
    let (first, second) = (of(&WORDS, page), of(&WORDS, page / WORDS.len()));
    let path = format!("/{}/{first}-{second}-{page}", of(&SECTIONS, page / 3));
    let name = KINDS.get(usize::from(kind)).map_or("custom", |(name, _)| name);
    let mut add = |arguments: std::fmt::Arguments<'_>| text.push_str(&arguments.to_string());
    add(format_args!(",\"type\":\"{name}\",\"path\":\"{path}\""));
    match name {
        "pageview" => add(format_args!(
            ",\"url\":\"https://shop.example.com{path}\",\"referrer\":\"{}\",\"load_time_ms\":{}",
            pick(rng, &REFERRERS),
            rng.random_range(80..4000)
        )),
        "click" => add(format_args!(
            ",\"element\":\"{}\",\"selector\":\"main > div.grid > a.card:nth-child({})\",\"x\":{},\"y\":{},\"text\":\"{first} {second}\"",
            pick(rng, &["a", "button", "img", "span"]),
            rng.random_range(1..24),
            rng.random_range(0..1920),
            rng.random_range(0..1080)
        )),
        "scroll" => add(format_args!(
            ",\"depth\":{},\"direction\":\"{}\"",
            rng.random_range(0..=100),
            pick(rng, &["down", "down", "down", "up"])
        )),
        "performance" => add(format_args!(
            ",\"lcp\":{},\"fid\":{},\"inp\":{},\"cls\":0.{:03},\"ttfb\":{},\"fcp\":{},\"dom_content_loaded\":{},\"load_complete\":{}",
            rng.random_range(600..5000),
            rng.random_range(1..120),
            rng.random_range(20..400),
            rng.random_range(0..400),
            rng.random_range(30..900),
            rng.random_range(300..2500),
            rng.random_range(400..3000),
            rng.random_range(900..8000)
        )),
        _ => add(format_args!(
            ",\"name\":\"{}\",\"properties\":{{\"sku\":\"{first}-{}\",\"quantity\":{},\"price\":{}.{:02},\"currency\":\"{}\"}}",
            pick(rng, &["add_to_cart", "checkout_started", "coupon_applied", "order_completed"]),
            rng.random_range(1000..9999),
            rng.random_range(1..5),
            rng.random_range(5..300),
            rng.random_range(0..100),
            pick(rng, &["EUR", "USD", "GBP"])
        )),
    }
    // Fields that no schema knows: the engine keeps them under `properties`.
    if kind != PAGEVIEW {
        add(format_args!(",\"experiment\":\"checkout-{}\"", pick(rng, &["a", "b"])));
    }
    add(format_args!(",\"plan\":\"{}\"", pick(rng, &["free", "pro", "enterprise"])));
    if let Some(bytes) = shape.bytes {
        let rest = bytes.saturating_sub(text.len() - begin + ",\"note\":\"\"},".len());
        text.push_str(",\"note\":\"");
        fill(text, rest, shape.noise, rng);
        text.push('"');
    }
    text.push('}');
    Places { id, seat: Some(Seat { session, user, timestamp }), kind }
}

/// Requests of one connection, made one after the other in the same memory.
pub struct Maker {
    rng: SmallRng,
    /// A second since 1970, and as it is written in timestamps, up to the milliseconds.
    second: (u64, String),
    tenants: usize,
    sessions_per_tenant: usize,
    /// The request as it goes over the wire, head and body.
    pub bytes: Vec<u8>,
    /// The ids of its events.
    pub ids: Vec<u128>,
}

impl Maker {
    /// `tenants` share `sessions`, each session in one of them.
    pub fn new(tenants: usize, sessions: usize) -> Self {
        let sessions_per_tenant = (sessions / tenants).max(1);
        Self {
            rng: SmallRng::from_os_rng(),
            second: (0, String::new()),
            tenants,
            sessions_per_tenant,
            bytes: Vec::new(),
            ids: Vec::new(),
        }
    }

    /// Makes a request of `template` for the tenant at `tenant`; `head` is everything up to the value of Content-Length.
    pub fn fill(&mut self, head: &str, template: &Template, tenant: usize) {
        self.bytes.clear();
        self.ids.clear();
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(format!("{}\r\n\r\n", template.bytes.len()).as_bytes());
        let body = self.bytes.len();
        self.bytes.extend_from_slice(&template.bytes);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        if self.second.0 != now.as_secs() {
            // Events happened in the second before they are sent.
            let second = i64::try_from(now.as_secs()).unwrap_or(0) - 1;
            let second = jiff::Timestamp::from_second(second).unwrap_or_default();
            self.second = (now.as_secs(), second.strftime("%Y-%m-%dT%H:%M:%S.").to_string());
        }
        let second = &self.second.1;
        let mut hyphenated = [0; 36];
        for event in &template.events {
            let mut random = [0; 10];
            self.rng.fill_bytes(&mut random);
            let id = Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
            self.ids.push(id.as_u128());
            put(&mut self.bytes, body + event.id, id.hyphenated().encode_lower(&mut hyphenated));

            let Some(seat) = &event.seat else { continue };
            let session = self.rng.random_range(0..self.sessions_per_tenant) * self.tenants + tenant;
            let session_id = session_id(session);
            put(&mut self.bytes, body + seat.session, session_id.hyphenated().encode_lower(&mut hyphenated));
            put_digits(&mut self.bytes, body + seat.user + 1, session, 8);
            put(&mut self.bytes, body + seat.timestamp, second);
            put_digits(&mut self.bytes, body + seat.timestamp + second.len(), self.rng.random_range(0..1000), 3);
        }
    }
}

/// The same id for the same session, spread over all values (the constant is the golden ratio's).
fn session_id(session: usize) -> Uuid {
    let spread = (session as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Builder::from_random_bytes(spread.to_be_bytes()).into_uuid()
}

fn put(bytes: &mut [u8], at: usize, text: &str) {
    if let Some(place) = bytes.get_mut(at..at + text.len()) {
        place.copy_from_slice(text.as_bytes());
    }
}

fn put_digits(bytes: &mut [u8], at: usize, mut number: usize, digits: usize) {
    if let Some(place) = bytes.get_mut(at..at + digits) {
        for digit in place.iter_mut().rev() {
            *digit = b"0123456789".get(number % 10).copied().unwrap_or(b'0');
            number /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KINDS, Maker, Shape, templates};

    fn events_of(shape: Shape) -> Vec<serde_json::Value> {
        let template = templates(20, shape).into_iter().next().unwrap_or_else(|| panic!("no template"));
        let mut maker = Maker::new(1, 10);
        maker.fill("", &template, 0);
        let text = String::from_utf8_lossy(&maker.bytes).into_owned();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        body.pointer("/events").and_then(|events| events.as_array()).cloned().unwrap_or_default()
    }

    #[test]
    fn events_have_the_size_that_was_asked_for() {
        for (bytes, size) in [(100, 100.0), (1_000, 1_000.0), (32_000, 32_000.0)] {
            for template in templates(20, Shape { bytes: Some(bytes), ..Shape::default() }).iter().take(3) {
                let found = template.bytes_per_event();
                assert!((found - size).abs() < 2.0, "{found} for {bytes}");
            }
            assert_eq!(events_of(Shape { bytes: Some(bytes), ..Shape::default() }).len(), 20);
        }
    }

    #[test]
    fn events_are_all_of_the_type_that_was_asked_for() {
        for (kind, (name, _)) in (0_u8..).zip(KINDS) {
            let events = events_of(Shape { kind: Some(kind), ..Shape::default() });
            assert_eq!(events.len(), 20);
            assert!(events.iter().all(|event| event.pointer("/type").is_some_and(|found| found == name)), "{name}");
        }
    }
}
