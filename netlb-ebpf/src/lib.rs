//! netlb's datapath core: written once, for every hook and both families, generic over the packet ([`packet::Packet`]) and the tables
//! ([`tables::Tables`]). It names no kernel: the same code runs in the kernel (`main.rs` is its edge) and on the host, in tests and in
//! `netlb trace`.
//!
//! # The life of a packet
//! [`parse`] finds the tuple. [`conntrack`] looks for the flow: one hash look-up for an established one, whose entry says how to rewrite
//! ([`nat`]) and where to send. Only a miss asks [`service`] for a frontend and a backend, and makes the two entries. What no backend takes is
//! answered by [`refuse`]; errors that quote a translated packet are translated back by [`icmp`], and a [`fragment`] follows its first. The routes
//! ([`enter`], [`leave`]) say which of this happens at which hook; [`socket`] does the same for connect() on the node.
#![no_std]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod conntrack;
pub mod detour;
pub mod enter;
pub mod fragment;
pub mod icmp;
pub mod leave;
pub mod nat;
pub mod packet;
pub mod parse;
pub mod refuse;
pub mod service;
pub mod socket;
pub mod tables;
pub mod verdict;
