//! A small generator of decisions (xorshift64*). Each stream prints its seed.

use std::time::SystemTime;

pub struct Random(u64);

impl Random {
    pub fn new(stream: usize) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
        let seed = (now.as_nanos() as u64 ^ ((stream as u64 + 1) << 48)) | 1;
        println!("stream {stream}: seed {seed:#x}");
        Self(seed)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
