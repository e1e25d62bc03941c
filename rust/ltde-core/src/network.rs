//! Two-layer networks, one for each state, Eq. (4.3): f(x; W) = M^{-1/2} sum_m b_m ReLU(x . W_m).
//!
//! The parameters are read where the caller keeps them, in float32 or float64; sums are in float64.

use crate::error::{Result, value_error};
use crate::model::Model;

/// The networks of all states: W (S, M, d) and b (S, M).
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a, F> {
    weights: &'a [F],
    signs: &'a [F],
    width: usize,
    inputs: usize,
}

impl<'a, F: Copy + Into<f64>> Networks<'a, F> {
    /// Views the parameters of `shape` (S, M, d).
    ///
    /// # Errors
    /// [`crate::Error::Value`] if a size does not fit or an entry is not finite.
    pub fn new(weights: &'a [F], signs: &'a [F], shape: [usize; 3]) -> Result<Self> {
        let [states, width, inputs] = shape;
        if width == 0 || inputs == 0 {
            return value_error!(
                "theta: expected a width and an input of at least 1, got {shape:?}"
            );
        }
        if weights.len() != states * width * inputs || signs.len() != states * width {
            return value_error!(
                "theta: expected {states} x {width} x {inputs} values and {states} x {width} signs, \
                 got {} and {}",
                weights.len(),
                signs.len()
            );
        }
        // sums and products of such numbers stay finite
        let finite = |w: &F| (*w).into().abs() <= 1e150;
        if let Some(i) = weights.iter().position(|w| !finite(w)) {
            return value_error!(
                "theta[{}, {}, {}]: expected a finite number within +-1e150, got {}",
                i / (width * inputs),
                i / inputs % width,
                i % inputs,
                weights[i].into()
            );
        }
        if let Some(i) = signs.iter().position(|b| !finite(b)) {
            return value_error!(
                "b[{}, {}]: expected a finite number within +-1e150, got {}",
                i / width,
                i % width,
                signs[i].into()
            );
        }
        Ok(Networks {
            weights,
            signs,
            width,
            inputs,
        })
    }

    /// Number of states S.
    pub fn states(&self) -> usize {
        self.signs.len() / self.width
    }

    /// Width M.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Length d of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The neurons of state `s`: b_m and W_m (d,), m in order.
    #[inline]
    pub fn neurons(&self, s: usize) -> impl Iterator<Item = (&'a F, &'a [F])> + use<'a, F> {
        let signs = &self.signs[s * self.width..][..self.width];
        let weights = &self.weights[s * self.width * self.inputs..][..self.width * self.inputs];
        signs.iter().zip(weights.chunks_exact(self.inputs))
    }
}

/// How a network reads a state: the input is `input_scale` times (`density_scale` mu(s), h).
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// (S, A): whether an action is allowed.
    pub mask: &'a [bool],
    /// The temperature parameter tau > 0 of Eq. (4.4).
    pub tau: f64,
    /// Multiplies mu(s).
    pub density_scale: f64,
    /// Multiplies the whole input.
    pub input_scale: f64,
}

impl Reading<'_> {
    /// Checks the networks of a policy, of `own_states` and `own_actions`, against a model.
    pub(crate) fn check(&self, own_states: usize, own_actions: usize, model: &Model) -> Result<()> {
        let (states, actions) = (model.graph.n_states(), model.n_actions);
        if (own_states, own_actions) != (states, actions) {
            return value_error!(
                "policy: made for {own_states} states and {own_actions} actions, the model has \
                 {states} and {actions}"
            );
        }
        for s in 0..states {
            let own = &self.mask[s * actions..][..actions];
            if let Some(a) = (0..actions).find(|&a| own[a] && !model.allowed(s)[a]) {
                return value_error!(
                    "policy: allows action {a} in state {s}, which action_mask of the model forbids"
                );
            }
        }
        Ok(())
    }
}
