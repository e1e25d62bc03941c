//! Exact simulation of N exchangeable agents on a graph of states, by counts.
//!
//! One concept per file:
//! - [`graph`]: the graph of states, balls and distances
//! - [`model`]: the local function, its data, masks, and what it may do wrong
//! - [`initial`]: the law P_0 of the initial counts
//! - [`policy`]: team-decentralised policies
//! - [`population`]: the counts of one replica; integers for finite N, fractions for infinity
//! - `step`: one step of one block of states
//! - [`simulator`]: replicas, rollouts, the restart chain, threads
//! - [`visitation`]: independent draws from the discounted visitation law
//! - [`rng`], [`math`], [`binomial`], [`multinomial`]: addressed random numbers and samplers
//! - [`watch`]: interrupting a long call
//! - [`error`]: what can go wrong

pub mod binomial;
pub mod error;
pub mod graph;
pub mod initial;
pub mod math;
pub mod model;
pub mod multinomial;
pub mod policy;
pub mod population;
pub mod rng;
pub mod simulator;
mod step;
pub mod visitation;
pub mod watch;

pub use error::{Error, Result};
