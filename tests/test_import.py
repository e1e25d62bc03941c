"""The package as a package: what importing it loads, its names, version and examples."""

import doctest
import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import subprocess
import sys

import ltde
import pytest

MODULES = [module.name for module in pkgutil.walk_packages(ltde.__path__, "ltde.")]


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_loads_nothing_heavy():
    heavy = "torch numba llvmlite matplotlib networkx scipy"
    code = f"""
import sys
import ltde
print(*(name for name in '{heavy}'.split() if name in sys.modules), "-")
ltde.Graph.ring(3).balls(1), ltde.TabularPolicy([[1.0]])
neural = 'ChainReport EnergyPolicy LTDENeuralAC SoftmaxPolicy TrainingDiverged TrainingResult'
[getattr(ltde, name) for name in ltde.__all__ if name not in neural]
print(*(name for name in '{heavy}'.split() if name in sys.modules), "-")
import numba
print('numba' in sys.modules)
"""
    assert run(code) == ["-", "-", "True"]


def test_every_public_name_is_there():
    assert ltde.__all__ == sorted(set(ltde.__all__))
    for name in ltde.__all__:
        value = getattr(ltde, name)
        assert value is getattr(ltde, name)
        assert name in dir(ltde)
        if name != "__version__":
            assert value.__module__.startswith("ltde")
            assert value.__name__ == name
            assert value.__doc__
    contract = "Graph NetworkedModel DirichletInitial Simulator AgentSimulator TabularPolicy"
    policies = {"FunctionPolicy", "SoftmaxPolicy", "EnergyPolicy"}
    assert set(contract.split()) | policies | {"ModelError"} <= set(ltde.__all__)


def test_star_import_gives_every_public_name():
    names = {}
    exec("from ltde import *", names)
    assert set(ltde.__all__) <= names.keys()


def test_names_in_dir_before_any_use():
    assert "Simulator" in run("import ltde; print(*dir(ltde))")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'ltde' has no attribute 'Simulater'$"):
        ltde.Simulater  # noqa: B018
    with pytest.raises(ImportError, match="Simulater"):
        from ltde import Simulater  # noqa: F401


def test_the_version_is_that_of_the_installed_package():
    assert ltde.__version__ == importlib.metadata.version("ltde")


def test_the_package_is_typed():
    assert (importlib.resources.files("ltde") / "py.typed").is_file()
    assert (importlib.resources.files("ltde") / "_core.pyi").is_file()


@pytest.mark.parametrize("name", [name for name in MODULES if name != "ltde._core"])
def test_public_names_of_a_module(name):
    module = importlib.import_module(name)
    assert module.__doc__
    if hasattr(module, "__all__"):
        assert all(hasattr(module, public) for public in module.__all__)


@pytest.mark.parametrize("name", ["ltde", *MODULES])
def test_the_examples_in_the_documentation_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.FAIL_FAST)
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        test.name.rsplit(".", 1)[-1]
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    classes = {"Graph", "NetworkedModel", "Simulator", "AgentSimulator", "TabularPolicy"}
    assert classes <= with_examples
    assert {"ltde.simulator", "ltde.model", "ltde.graph", "ltde._core"} <= set(MODULES)
