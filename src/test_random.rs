//! Chance for tests: deterministic, so that a failure can be run again.

/// Marsaglia's xorshift.
pub struct TestRandom(pub u64);

impl TestRandom {
    /// Sixty-four bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below the limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// One of these.
    pub fn choose<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Nothing, or what the closure makes.
    pub fn maybe<T>(&mut self, make: impl FnOnce(&mut TestRandom) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| make(self))
    }
}
