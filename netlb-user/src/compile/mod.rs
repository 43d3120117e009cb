//! From the world to the tables it wants: for each Service its frontends, backends and their states, and what is wrong with it.
//!
//! Computing never fails, it reports: what cannot be served is left out and becomes a [`Problem`](crate::model::Problem). A Service is compiled
//! from the world alone and by itself, so a change costs what it touches; [`Compiled`] keeps the results, and equals a full compile at any time.

pub mod choice;
pub mod cidrs;
pub mod desired;
pub mod merge;
pub mod service;
pub mod slots;

pub use choice::Target;
pub use cidrs::compile_cidrs;
pub use desired::Compiled;
pub use service::{
    BackendState, BackendTable, FrontendTable, List, PortTables, ServicePortKey, ServiceTables, compile_service,
};

#[cfg(test)]
mod tests;
