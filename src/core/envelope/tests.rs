//! Property tests of seal and open (in progress).
