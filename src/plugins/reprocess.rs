//! Parked events, run through their plugins and brought into `events`.
