//! A body as the pieces in which it arrived. Insert data stays in these pieces all the way to the engine, uncopied.

use std::{collections::VecDeque, io::Read};

use bytes::{Buf, Bytes, BytesMut};

/// A sequence of byte pieces, read from the front.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Chunks {
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Puts a piece before all others.
    pub(super) fn push_front(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_front(piece);
        }
    }

    /// Bytes in all pieces.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The next piece, left where it is.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.pieces.front().map(AsRef::as_ref)
    }

    /// The next piece, of whatever size.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.length -= piece.len();
        Some(piece)
    }

    /// The next `count` bytes (fewer at the end) as one piece: a view if they lie in one piece, else a copy.
    pub(super) fn split_to(&mut self, count: usize) -> Bytes {
        let count = count.min(self.length);
        if let Some(front) = self.pieces.front_mut()
            && front.len() > count
        {
            self.length -= count;
            return front.split_to(count);
        }
        if let Some(piece) = self.pop_if_exactly(count) {
            return piece;
        }
        let mut joined = BytesMut::with_capacity(count);
        while joined.len() < count {
            let missing = count - joined.len();
            let Some(front) = self.pieces.front_mut() else { break };
            let part = front.split_to(missing.min(front.len()));
            if front.is_empty() {
                self.pieces.pop_front();
            }
            self.length -= part.len();
            joined.extend_from_slice(&part);
        }
        joined.freeze()
    }

    /// The next `N` bytes, left where they are; None when there are fewer.
    pub(super) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        for piece in &self.pieces {
            let target = bytes.get_mut(filled..)?;
            let count = target.len().min(piece.len());
            target.get_mut(..count)?.copy_from_slice(piece.get(..count)?);
            filled += count;
            if filled == N {
                return Some(bytes);
            }
        }
        None
    }

    /// Everything as one piece.
    pub(super) fn join(mut self) -> Bytes {
        self.split_to(self.length)
    }

    fn pop_if_exactly(&mut self, count: usize) -> Option<Bytes> {
        if self.pieces.front()?.len() == count { self.pop() } else { None }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(front) = self.pieces.front_mut() else { return Ok(0) };
        let count = front.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..count), front.get(..count)) {
            target.copy_from_slice(source);
        }
        front.advance(count);
        self.length -= count;
        if front.is_empty() {
            self.pieces.pop_front();
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn taking_crosses_pieces() {
        let mut chunks = Chunks::default();
        for piece in ["ab", "cde", "f"] {
            chunks.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(chunks.peek(), Some(*b"abcd"));
        assert_eq!(chunks.peek::<7>(), None);
        assert_eq!(chunks.split_to(1), "a");
        assert_eq!(chunks.split_to(3), "bcd");
        let mut two = [0; 2];
        assert_eq!(chunks.read(&mut two).unwrap(), 1);
        assert_eq!((two, chunks.len()), ([b'e', 0], 1));
        assert_eq!(chunks.split_to(9), "f");
        assert!(chunks.is_empty());
    }
}
