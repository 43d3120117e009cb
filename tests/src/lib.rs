//! What netlb's tests share.
//!
//! - [`packet`]: frames by layers, and their check from scratch.
//! - [`world`]: the tables of a test as plain data.
//! - [`case`]: scenarios with expectations, run by the [`host`] (the core without a kernel) or in the [`kernel`].
//! - [`random`]: worlds and packets by chance, the same for the same seed.
//! - [`cases`]: the table of all cases.
//! - [`outside`]: the namespace whose FIB a test run asks.
//! - [`golden`]: from YAML to map dumps.
//! - [`disassembly`]: what the kernel object's code says about itself.
//! - [`harness`], [`need`]: tests that are data, and tests that a machine may not be able to run.
//!
//! For tests over real traffic:
//! - [`rig`]: a test node with a running agent.
//! - [`sockets`], [`bulk`]: clients inside pods; [`puppet`]: clients that are processes, for socket hooks.
//! - [`http`]: a question and its answer, letter by letter.
//! - [`capture`]: frames as they arrive, checksums recomputed.
//! - [`control_plane`]: a real API server beside a test node.
//! - [`kernel_objects`]: programs, links and maps as the kernel lists them.
//! - [`traffic`], [`arrivals`]: the tables of cases.
//!
//! - [`truth`]: kube-proxy's tables of packet flows, through the loaded programs and real sockets.

pub mod arrivals;
pub mod bulk;
pub mod capture;
pub mod case;
pub mod cases;
pub mod control_plane;
pub mod disassembly;
pub mod golden;
pub mod harness;
pub mod host;
pub mod http;
pub mod kernel;
pub mod kernel_objects;
pub mod need;
pub mod outside;
pub mod packet;
pub mod puppet;
pub mod random;
pub mod rig;
pub mod sockets;
pub mod traffic;
pub mod truth;
pub mod world;
