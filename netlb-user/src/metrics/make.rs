//! Making metrics: each is registered, and has its series from the start.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

/// Makes metrics for a registry.
pub(super) struct Maker<'a> {
    pub(super) registry: &'a Registry,
}

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.keep(IntGauge::new(name, help)?)
    }

    pub(super) fn float(&self, name: &str, help: &str) -> Result<Gauge> {
        self.keep(Gauge::new(name, help)?)
    }

    /// `series`: the values of the labels.
    pub(super) fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        series: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Result<IntCounterVec> {
        let metric = self.keep(IntCounterVec::new(Opts::new(name, help), &labels)?)?;
        series.into_iter().for_each(|values| drop(metric.with_label_values(&values)));
        Ok(metric)
    }

    pub(super) fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        series: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Result<IntGaugeVec> {
        let metric = self.keep(IntGaugeVec::new(Opts::new(name, help), &labels)?)?;
        series.into_iter().for_each(|values| drop(metric.with_label_values(&values)));
        Ok(metric)
    }

    pub(super) fn floats<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        series: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Result<GaugeVec> {
        let metric = self.keep(GaugeVec::new(Opts::new(name, help), &labels)?)?;
        series.into_iter().for_each(|values| drop(metric.with_label_values(&values)));
        Ok(metric)
    }

    pub(super) fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        buckets: Vec<f64>,
        labels: [&str; N],
        series: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Result<HistogramVec> {
        let metric = self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &labels)?)?;
        series.into_iter().for_each(|values| drop(metric.with_label_values(&values)));
        Ok(metric)
    }
}
