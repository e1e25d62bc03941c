//! The softmax policy: pi(a | s, mu(s)) = softmax over allowed a of tau f((mu(s), e_a); theta_s).
//!
//! Its team policy is the multinomial of Eq. (3.2).

use crate::error::Result;
use crate::math::exp_nonpositive;
use crate::model::Model;
use crate::network::{Networks, Reading};
use crate::policy::{Cell, TeamPolicy};

/// Softmax policies of all states.
#[derive(Debug, Clone, Copy)]
pub struct SoftmaxPolicy<'a, F> {
    networks: Networks<'a, F>,
    reading: Reading<'a>,
}

impl<'a, F: Copy + Into<f64>> SoftmaxPolicy<'a, F> {
    /// The policy of these networks, each of input (mu(s), e_a), so d = 1 + A.
    pub fn new(networks: Networks<'a, F>, reading: Reading<'a>) -> Self {
        SoftmaxPolicy { networks, reading }
    }

    /// f((mu(s), e_a); theta_s) for every a: fills `out` (A,).
    #[inline]
    pub fn outputs(&self, s: usize, density: f64, out: &mut [f64]) {
        let unit = self.reading.input_scale;
        let x = unit * self.reading.density_scale * density;
        out.fill(0.0);
        for (sign, row) in self.networks.neurons(s) {
            let base = x * row[0].into();
            for (o, &w) in out.iter_mut().zip(&row[1..]) {
                let z = base + unit * w.into();
                *o += if z > 0.0 { sign * z } else { 0.0 };
            }
        }
        let scale = 1.0 / (self.networks.width() as f64).sqrt();
        out.iter_mut().for_each(|f| *f *= scale);
    }

    /// Fills `out` (B, S, A) at `densities` (B, S) with pi, or with f, before the softmax, if
    /// `outputs`.
    pub fn at_densities(&self, densities: &[f64], outputs: bool, out: &mut [f64]) {
        let (states, actions) = (self.networks.states(), self.networks.inputs() - 1);
        for (i, (out, &density)) in out.chunks_mut(actions).zip(densities).enumerate() {
            let s = i % states;
            self.outputs(s, density, out);
            if !outputs {
                let mask = &self.reading.mask[s * actions..][..actions];
                softmax(out, mask, self.reading.tau);
            }
        }
    }
}

impl<F: Copy + Into<f64> + Sync> TeamPolicy for SoftmaxPolicy<'_, F> {
    fn check(&self, model: &Model, _n_replicas: usize, _n_steps: usize) -> Result<()> {
        self.reading.check(&self.networks, model)
    }

    #[inline]
    fn mean_action<'a>(&'a self, cell: Cell, pi: &'a mut [f64]) -> &'a [f64] {
        let (s, actions) = (cell.state, pi.len());
        let mask = &self.reading.mask[s * actions..][..actions];
        self.outputs(s, cell.density, pi);
        softmax(pi, mask, self.reading.tau);
        pi
    }
}

/// Turns f into the softmax of tau f over the allowed entries; the others become 0.
#[inline]
fn softmax(pi: &mut [f64], mask: &[bool], tau: f64) {
    let mut largest = f64::NEG_INFINITY;
    for (p, &allowed) in pi.iter_mut().zip(mask) {
        *p = if allowed { tau * *p } else { f64::NEG_INFINITY };
        largest = if *p > largest { *p } else { largest };
    }
    let mut sum = 0.0;
    for p in pi.iter_mut() {
        *p = exp_nonpositive(*p - largest);
        sum += *p;
    }
    pi.iter_mut().for_each(|p| *p /= sum);
}
