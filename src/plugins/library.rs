//! A shared library: looked at as a file, opened, its header checked before anything else is touched.
