//! `plugins new`: a plugin's crate that builds, with a test.
