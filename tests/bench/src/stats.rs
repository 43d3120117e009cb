//! Order statistics of samples.

use serde::Serialize;

/// Median, least and greatest of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Spread { median: quantile(&sorted, 0.5)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// The quantile of sorted samples, between two samples in proportion.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = q * last as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_moves_the_maximum_only() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0, 900.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 900.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn quantiles_between_two_samples_are_in_proportion() {
        assert_eq!(quantile(&[10.0, 20.0], 0.5), Some(15.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.9), Some(4.6));
        assert_eq!(quantile(&[7.0], 0.9), Some(7.0));
    }
}
