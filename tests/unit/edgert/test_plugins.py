"""Extension points are folders."""

import subprocess
import sys

import pytest

from edgert import plugins
from edgert.errors import UsageError


def test_the_names_are_the_files_of_the_folder() -> None:
    assert plugins.names("edgert.backends") == ["onnxruntime", "tflite"]


def test_listing_imports_nothing() -> None:
    code = (
        "import sys; from edgert import plugins; plugins.names('edgert.backends'); "
        "sys.exit('edgert.backends.onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_loading_imports_that_one_file() -> None:
    code = (
        "import sys; from edgert import plugins; plugins.load('edgert.backends', 'tflite'); "
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'edgert.backends.onnxruntime')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_an_unknown_plugin_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no plug-in named 'cuda'") as caught:
        plugins.load("edgert.backends", "cuda")
    assert "onnxruntime" in caught.value.hint


@pytest.mark.parametrize("name", ["base", "__init__", "../values", "os"])
def test_what_is_no_plugin_is_not_imported(name: str) -> None:
    with pytest.raises(UsageError):
        plugins.load("edgert.backends", name)


def test_a_module_is_no_folder_of_plugins() -> None:
    with pytest.raises(UsageError, match="not a package"):
        plugins.names("edgert.values")
