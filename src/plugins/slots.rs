//! Which plugin was in call when the process crashed: a mapped file with a slot for each thread, and the signal handler.
