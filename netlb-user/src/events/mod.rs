//! Events: what could not be programmed is told at the objects themselves, where `kubectl describe` shows it. Only where the source is a cluster;
//! nothing waits for it, and what cannot be written is not tried again.

mod ledger;

use std::time::Duration;

use tokio::sync::mpsc;

pub use ledger::{Event, Ledger, Reason};

use crate::model::Problem;

/// Events that wait to be written.
const WAITING: usize = 64;

/// Takes Events to be written.
pub trait EventSink: Send {
    /// At once. False: there is no room for it.
    fn write(&mut self, event: Event) -> bool;
}

impl EventSink for mpsc::Sender<Event> {
    fn write(&mut self, event: Event) -> bool {
        self.try_send(event).is_ok()
    }
}

/// A sink, and where its Events come out.
pub fn channel() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(WAITING)
}

/// Tells of problems as they come.
#[derive(Default)]
pub struct Teller {
    ledger: Ledger,
    /// `None`: the source keeps no Events.
    sink: Option<Box<dyn EventSink>>,
}

impl Teller {
    pub fn new(sink: Option<Box<dyn EventSink>>) -> Self {
        Teller { ledger: Ledger::default(), sink }
    }

    /// These are all problems now. `now`: any clock that does not go backwards.
    pub fn tell<'a>(&mut self, problems: impl IntoIterator<Item = (Reason, &'a Problem)>, now: Duration) {
        let Some(sink) = &mut self.sink else { return };
        for event in self.ledger.due(problems, now) {
            let (kind, name) = (event.kind.name(), event.name.clone());
            if !sink.write(event) {
                tracing::debug!(kind, name, "an Event was not written: too many wait");
            }
        }
    }
}
