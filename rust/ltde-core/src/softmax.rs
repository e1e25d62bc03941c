//! The softmax policy: pi(a | s, mu(s)) = softmax over allowed a of tau f((mu(s), e_a); theta_s).
//!
//! Its team policy is the multinomial of Eq. (3.2).

use crate::error::Result;
use crate::math::exp_nonpositive;
use crate::model::Model;
use crate::network::{Networks, Reading};
use crate::policy::{Cell, TeamPolicy};
use crate::simd::{Kernel, Simd, dispatch};

/// Neurons that are summed side by side. The sums of all instruction sets have this many parts.
const LANES: usize = 8;

/// Softmax policies of all states.
#[derive(Debug)]
pub struct SoftmaxPolicy<'a, F> {
    reading: Reading<'a>,
    states: usize,
    actions: usize,
    /// Width M, rounded up to whole lanes with neurons that do nothing.
    padded: usize,
    /// For each state b, the weights of mu(s) and those of each action, (S, 2 + A, padded): the
    /// networks with neurons side by side.
    rows: Vec<F>,
    /// M^{-1/2} times the scale of the inputs.
    scale: f64,
}

impl<'a, F: Copy + Default + Into<f64>> SoftmaxPolicy<'a, F> {
    /// The policy of these networks, each of input (mu(s), e_a), so d = 1 + A. Arranges a copy of
    /// their parameters for vectors, once for all that is played with it.
    pub fn new(networks: Networks<'_, F>, reading: Reading<'a>) -> Self {
        let (states, actions) = (networks.states(), networks.inputs() - 1);
        let padded = networks.width().next_multiple_of(LANES);
        let mut rows = vec![F::default(); states * (2 + actions) * padded];
        for (s, rows) in rows.chunks_exact_mut((2 + actions) * padded).enumerate() {
            for (m, (&sign, weights)) in networks.neurons(s).enumerate() {
                rows[m] = sign;
                for (row, &w) in rows[padded..].chunks_exact_mut(padded).zip(weights) {
                    row[m] = w;
                }
            }
        }
        SoftmaxPolicy {
            reading,
            states,
            actions,
            padded,
            rows,
            // a ReLU of a multiple is the multiple of the ReLU
            scale: reading.input_scale / (networks.width() as f64).sqrt(),
        }
    }

    /// f((mu(s), e_a); theta_s) for every a: fills `out` (A,).
    #[inline(always)]
    pub fn outputs(&self, s: usize, density: f64, out: &mut [f64]) {
        let size = (2 + self.actions) * self.padded;
        let (head, weights) = self.rows[s * size..][..size].split_at(2 * self.padded);
        let x = self.reading.density_scale * density;
        // one copy of the code for each small A: its sums stay in registers
        match self.actions {
            2 => self.forward::<2>(head, weights, x, out),
            3 => self.forward::<3>(head, weights, x, out),
            5 => self.forward::<5>(head, weights, x, out),
            _ => {
                let mut parts = out.chunks_exact_mut(4);
                let mut weights = weights.chunks(4 * self.padded);
                for (out, weights) in parts.by_ref().zip(weights.by_ref()) {
                    self.forward::<4>(head, weights, x, out);
                }
                let (out, weights) = (parts.into_remainder(), weights.next().unwrap_or(&[]));
                match out.len() {
                    1 => self.forward::<1>(head, weights, x, out),
                    2 => self.forward::<2>(head, weights, x, out),
                    3 => self.forward::<3>(head, weights, x, out),
                    _ => {}
                }
            }
        }
    }

    /// scale sum_m b_m ReLU(x w_m0 + w_ma) for A actions; `head` holds b and w_0.
    #[inline(always)]
    fn forward<const A: usize>(&self, head: &[F], weights: &[F], x: f64, out: &mut [f64]) {
        let width = self.padded;
        let (signs, base) = (&head[..width], &head[width..2 * width]);
        let rows: [&[F]; A] = std::array::from_fn(|a| &weights[a * width..][..width]);
        let mut sums = [[0.0; LANES]; A];
        for i in 0..width / LANES {
            let at = i * LANES..(i + 1) * LANES;
            let (mut b, mut start) = ([0.0; LANES], [0.0; LANES]);
            for (l, (&b_m, &w)) in signs[at.clone()].iter().zip(&base[at.clone()]).enumerate() {
                b[l] = b_m.into();
                start[l] = x * w.into();
            }
            for a in 0..A {
                for (l, &w) in rows[a][at.clone()].iter().enumerate() {
                    let z = start[l] + w.into();
                    sums[a][l] += b[l] * if z > 0.0 { z } else { 0.0 };
                }
            }
        }
        for (o, p) in out.iter_mut().zip(&sums) {
            *o = self.scale * (((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7])));
        }
    }

    /// Fills `out` (B, S, A) at `densities` (B, S) with pi, or with f, before the softmax, if
    /// `outputs`.
    pub fn at_densities(&self, densities: &[f64], outputs: bool, out: &mut [f64]) {
        dispatch(AtDensities {
            policy: self,
            densities,
            outputs,
            out,
        });
    }

    #[inline(always)]
    fn probabilities(&self, s: usize, density: f64, pi: &mut [f64]) {
        self.outputs(s, density, pi);
        let mask = &self.reading.mask[s * self.actions..][..self.actions];
        match self.actions {
            2 => softmax_of::<2>(pi, mask, self.reading.tau),
            3 => softmax_of::<3>(pi, mask, self.reading.tau),
            4 => softmax_of::<4>(pi, mask, self.reading.tau),
            5 => softmax_of::<5>(pi, mask, self.reading.tau),
            _ => softmax(pi, mask, self.reading.tau),
        }
    }
}

struct AtDensities<'a, F> {
    policy: &'a SoftmaxPolicy<'a, F>,
    densities: &'a [f64],
    outputs: bool,
    out: &'a mut [f64],
}

impl<F: Copy + Default + Into<f64>> Kernel for AtDensities<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let SoftmaxPolicy {
            states, actions, ..
        } = *self.policy;
        for (i, (out, &density)) in self.out.chunks_mut(actions).zip(self.densities).enumerate() {
            if self.outputs {
                self.policy.outputs(i % states, density, out);
            } else {
                self.policy.probabilities(i % states, density, out);
            }
        }
    }
}

struct Probabilities<'a, F> {
    policy: &'a SoftmaxPolicy<'a, F>,
    cell: Cell,
    pi: &'a mut [f64],
}

impl<F: Copy + Default + Into<f64>> Kernel for Probabilities<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Cell { state, density, .. } = self.cell;
        self.policy.probabilities(state, density, self.pi);
    }
}

impl<F: Copy + Default + Into<f64> + Sync> TeamPolicy for SoftmaxPolicy<'_, F> {
    fn check(&self, model: &Model, _n_replicas: usize, _n_steps: usize) -> Result<()> {
        self.reading.check(self.states, self.actions, model)
    }

    fn mean_action(&self, cell: Cell, pi: &mut [f64]) {
        dispatch(Probabilities {
            policy: self,
            cell,
            pi,
        });
    }
}

/// As [`softmax`], for A entries: the compiler unrolls its loops.
#[inline(always)]
fn softmax_of<const A: usize>(pi: &mut [f64], mask: &[bool], tau: f64) {
    if let (Some(pi), Some(mask)) = (pi.first_chunk_mut::<A>(), mask.first_chunk::<A>()) {
        softmax(pi, mask, tau);
    }
}

/// Turns f into the softmax of tau f over the allowed entries; the others become 0.
#[inline(always)]
fn softmax(pi: &mut [f64], mask: &[bool], tau: f64) {
    let mut largest = f64::NEG_INFINITY;
    for (p, &allowed) in pi.iter_mut().zip(mask) {
        *p = if allowed { tau * *p } else { f64::NEG_INFINITY };
        largest = if *p > largest { *p } else { largest };
    }
    let mut sum = 0.0;
    for part in pi.chunks_mut(LANES) {
        // exponentials side by side
        let mut x = [f64::NEG_INFINITY; LANES];
        for (l, x) in x.iter_mut().enumerate() {
            if let Some(p) = part.get(l) {
                *x = p - largest;
            }
        }
        for x in &mut x {
            *x = exp_nonpositive(*x);
        }
        for (p, x) in part.iter_mut().zip(x) {
            *p = x;
            sum += x;
        }
    }
    pi.iter_mut().for_each(|p| *p /= sum);
}
