//! A small HTTP/1.1 server: ports that are listened on, and what is answered there. Nobody who keeps connections open keeps others from asking.

mod answer;
mod serve;

pub use answer::Answer;
pub use serve::{Connections, Question, listen, serve};
