//! The extension module `ltde._core`: conversion and errors only, no mathematics.

mod errors;
mod graph;
mod leave;
mod local_function;
mod model;
mod policy;
mod sampling;
mod simulator;

/// The compiled core of ltde. Private: use the classes of the package `ltde`.
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::errors::ModelError;
    #[pymodule_export]
    use crate::graph::PyGraph;
    #[pymodule_export]
    use crate::model::PyModel;
    #[pymodule_export]
    use crate::policy::{PyNetworkPolicy, PyTabularPolicy, sample_actions};
    #[pymodule_export]
    use crate::sampling::{binomial, multinomial};
    #[pymodule_export]
    use crate::simulator::PySimulator;

    /// The instruction set that the core takes.
    #[pyfunction]
    fn instruction_set() -> &'static str {
        ltde_core::simd::instruction_set().name()
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        ltde_core::simd::asked().map_err(crate::errors::to_py)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
