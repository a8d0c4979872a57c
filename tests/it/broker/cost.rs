//! What relay and source cost.
