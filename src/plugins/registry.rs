//! The plugins in use: taken in, replaced, retired, quarantined, while events flow.
