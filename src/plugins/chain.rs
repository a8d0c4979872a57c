//! The plugins of an event, one after the other, over the events of a request.
