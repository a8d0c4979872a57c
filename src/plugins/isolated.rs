//! A plugin in a child process, for those who want the safety more than the speed.
