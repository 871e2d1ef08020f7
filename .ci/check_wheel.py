"""Run with the interpreter of an environment that holds the wheel and NumPy, but no torch."""

import importlib.metadata
import importlib.resources
import importlib.util
import subprocess

import numpy as np

import glimprouter as gr

assert importlib.util.find_spec("torch") is None, "this check wants an environment without torch"
row = np.zeros((2, 1000), np.float32)
np.testing.assert_allclose(gr.glimpse(row).entropy, np.log(1000), rtol=1e-6)
files = importlib.resources.files("glimprouter")
WANTED = (
    "py.typed",
    "serve/page.html",
    "_C.pyi",
    "include/glimprouter/glimprouter.hpp",
    "lib/libglimprouter.a",
    "lib/cmake/glimprouter/glimprouterConfig.cmake",
)
for name in WANTED:
    assert files.joinpath(name).is_file(), f"the wheel lacks {name}"
# Device code comes with the CUDA runtime inside and asks for no driver.
needed = subprocess.run(["ldd", gr._C.__file__], capture_output=True, text=True, check=True).stdout
assert "libcuda" not in needed, needed
assert gr.build_info()["devices"][0] == "cpu"
assert gr.__version__ == importlib.metadata.version("glimprouter")
print(gr.build_info())
