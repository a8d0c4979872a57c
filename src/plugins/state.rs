//! What is remembered of plugins across restarts: the ones in use, quarantines, crashes, types that are gone.
