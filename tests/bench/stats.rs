//! Median and range of a handful of measurements. Runs in the benchmark's process; pure.
//!
//! The median, not the mean: on a shared machine single runs are off by any factor, always to the slow side.

/// Of at least one value, all finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// None for no values, or if one is not a number: a run that measured nothing must not pass for a result.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        if sorted.iter().any(|value| !value.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_value_whatever_the_order() {
        let of = |values: &[f64]| Summary::of(values.iter().copied()).unwrap();
        assert_eq!(of(&[9.0, 1.0, 5.0]), Summary { median: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 100.0]).median, 3.0, "an even count has two middles");
        assert_eq!(of(&[7.0]), Summary { median: 7.0, min: 7.0, max: 7.0 });
        // One run that was disturbed does not move it.
        assert_eq!(of(&[0.8, 0.8, 0.8, 0.8, 0.01]).median, 0.8);
    }

    #[test]
    fn nothing_measured_is_no_result() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([1.0, f64::NAN]), None);
        assert_eq!(Summary::of([1.0, 1.0 / 0.0]), None);
    }
}
