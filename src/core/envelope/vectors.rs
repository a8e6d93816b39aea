//! Wycheproof vectors (in progress).
