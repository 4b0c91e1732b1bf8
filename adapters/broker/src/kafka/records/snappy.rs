//! Snappy, read through a window: the `snap` crate wants room for all that a block claims to hold,
//! which can be 4 GiB.

use std::io::{self, BufRead, Chain, Cursor, ErrorKind, Read};

/// How far back a copy may reach. Encoders work on blocks of 64 KiB, and reach no further.
const WINDOW: usize = 64 * 1024;

/// How much is made ready at a time, or a little more.
const PORTION: usize = 32 * 1024;

/// What blocks in the frames of Kafka's own client begin with; two versions stand behind it.
const MAGIC: &[u8] = b"\x82SNAPPY\0";
const FRAME_HEAD: u64 = 16;

/// Reads one block, or several in frames, each behind its length.
pub(super) struct SnappyReader<R> {
    source: Chain<Cursor<Vec<u8>>, R>,
    framed: bool,
    begun: bool,
    /// The bytes that the block has not returned.
    plain_left: u64,
    /// The unread bytes of the literal.
    literal_left: u64,
    /// The bytes that the reader returned last, and those that it has ready.
    window: Vec<u8>,
    given: usize,
}

impl<R: BufRead> SnappyReader<R> {
    pub(super) fn new(mut source: R) -> io::Result<Self> {
        let mut head = Vec::new();
        source.by_ref().take(FRAME_HEAD).read_to_end(&mut head)?;
        let framed = head.starts_with(MAGIC);
        if framed {
            head.clear();
        }
        Ok(Self {
            source: Cursor::new(head).chain(source),
            framed,
            begun: false,
            plain_left: 0,
            literal_left: 0,
            window: Vec::new(),
            given: 0,
        })
    }

    fn make_ready(&mut self) -> io::Result<()> {
        if self.window.len() > 4 * WINDOW {
            self.window.drain(..self.window.len() - WINDOW);
        }
        self.given = self.window.len();
        while self.window.len() - self.given < PORTION {
            if self.literal_left > 0 {
                self.literal()?;
            } else if self.plain_left > 0 {
                self.element()?;
            } else if !self.begin_block()? {
                break;
            }
        }
        Ok(())
    }

    /// Says whether there is one more.
    fn begin_block(&mut self) -> io::Result<bool> {
        if self.framed {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            // Its length as it is stored; where it ends, its content says as well.
            let _: [u8; 4] = self.bytes()?;
        } else if std::mem::replace(&mut self.begun, true) {
            return Ok(false);
        }
        for shift in (0..35).step_by(7) {
            let [byte] = self.bytes()?;
            self.plain_left |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(true);
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    fn element(&mut self) -> io::Result<()> {
        let [tag] = self.bytes()?;
        let upper = usize::from(tag >> 2);
        match tag & 0b11 {
            0 => {
                let length = match upper {
                    60 => u32::from(u8::from_le_bytes(self.bytes()?)),
                    61 => u32::from(u16::from_le_bytes(self.bytes()?)),
                    62 => {
                        let [low, middle, high] = self.bytes()?;
                        u32::from_le_bytes([low, middle, high, 0])
                    }
                    63 => u32::from_le_bytes(self.bytes()?),
                    short => u32::try_from(short).map_err(|_| ErrorKind::InvalidData)?,
                };
                self.literal_left = u64::from(length) + 1;
                self.give(self.literal_left)
            }
            1 => {
                let [low] = self.bytes()?;
                let offset = (upper >> 3) << 8 | usize::from(low);
                self.copy(offset, 4 + (upper & 0b111))
            }
            2 => {
                let offset = u16::from_le_bytes(self.bytes()?);
                self.copy(offset.into(), upper + 1)
            }
            _ => {
                let offset = u32::from_le_bytes(self.bytes()?);
                self.copy(usize::try_from(offset).unwrap_or(usize::MAX), upper + 1)
            }
        }
    }

    fn literal(&mut self) -> io::Result<()> {
        let chunk = self.source.fill_buf()?;
        let most = usize::try_from(self.literal_left).unwrap_or(PORTION).min(PORTION);
        let chunk = &chunk[..chunk.len().min(most)];
        if chunk.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.window.extend_from_slice(chunk);
        let taken = chunk.len();
        self.source.consume(taken);
        self.literal_left -= taken as u64;
        Ok(())
    }

    /// May overlap with what it makes: then it repeats.
    fn copy(&mut self, offset: usize, length: usize) -> io::Result<()> {
        self.give(length as u64)?;
        let begin = self.window.len().checked_sub(offset).filter(|_| offset > 0);
        let begin = begin.ok_or(ErrorKind::InvalidData)?;
        for at in begin..begin + length {
            self.window.push(self.window[at]);
        }
        Ok(())
    }

    /// Counts what is given, which may be no more than the block claims.
    fn give(&mut self, length: u64) -> io::Result<()> {
        self.plain_left = self.plain_left.checked_sub(length).ok_or(ErrorKind::InvalidData)?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl<R: BufRead> BufRead for SnappyReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.given == self.window.len() {
            self.make_ready()?;
        }
        Ok(&self.window[self.given..])
    }

    fn consume(&mut self, amount: usize) {
        self.given += amount;
    }
}

impl<R: BufRead> Read for SnappyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let read = ready.len().min(buffer.len());
        buffer[..read].copy_from_slice(&ready[..read]);
        self.consume(read);
        Ok(read)
    }
}
