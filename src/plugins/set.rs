//! The plugins in use at a moment, and which of them is given which event. Immutable; a change makes a new one.
