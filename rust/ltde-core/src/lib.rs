//! Exact simulation of N exchangeable agents on a graph of states, by counts.
//!
//! One concept per file:
//! - [`graph`]: the graph of states, balls and distances
//! - [`model`]: the local function, its data, masks, and what it may do wrong
//! - [`initial`]: the law P_0 of the initial counts
//! - [`policy`]: team-decentralised policies; the table
//! - [`network`], [`softmax`], [`energy`]: the policies of two-layer networks
//! - [`population`]: the counts of one replica; integers for finite N, fractions for infinity
//! - `step`, `play`: one step of one block of states, and of one replica
//! - [`teams`]: the teams of one block, their actions and moves
//! - [`simulator`]: replicas, rollouts, the restart chain, threads
//! - [`record`]: where a rollout writes
//! - [`visitation`]: independent draws from the discounted visitation law
//! - [`rng`], [`math`], [`binomial`], [`hat`], [`multinomial`]: addressed random numbers and samplers
//! - `tiny`, `few`, `chain`: the samplers in vectors, by the number of agents
//! - [`simd`]: vectors of eight lanes, on every instruction set
//! - [`watch`]: interrupting a long call
//! - [`error`]: what can go wrong

pub mod binomial;
mod chain;
mod columns;
pub mod costate;
pub mod energy;
pub mod error;
mod few;
pub mod graph;
pub mod hat;
pub mod initial;
pub mod math;
pub mod model;
pub mod multinomial;
pub mod network;
mod play;
pub mod policy;
pub mod population;
pub mod record;
pub mod rng;
pub mod simd;
pub mod simulator;
pub mod softmax;
mod step;
pub mod teams;
mod tiny;
pub mod visitation;
pub mod watch;

pub use error::{Error, Result};
