"""A misspelt class is found without importing anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool.targets import why_not_importable

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project in the working folder; importing any of it fails."""
    monkeypatch.syspath_prepend(tmp_path)
    sources: dict[str, str | bytes] = {
        "tt_models.py": """
raise ImportError("nobody may import this")
import tt_models
class Net(Base):
    pass
class Factory:
    kinds = ["a"]
    class Inner:
        deep: int
    def build(self): local_name = 1
try:
    from fast import Fast
except ImportError:
    Fast = None
if True:
    def make(): inside_function = 1
a, (b, *c) = 1, (2, 3)
with open("x") as handle: pass
""",
        "tt_package/__init__.py": "from tt_package.Same import Same\nfrom .star import *\nfrom . import Module\n",
        "tt_package/Same.py": "class Same: pass\n",
        "tt_package/Module.py": "",
        "tt_package/Alone.py": "class Alone: pass\n",
        "tt_package/star.py": "from .inner import *\nclass Starred: pass\n",
        "tt_package/inner.py": "Constant = 1\n",
        "tt_namespace/part.py": "Thing = 1\n",
        "tt_lazy.py": "def __getattr__(name): ...\n",
        "tt_dynamic.py": "globals().update(Made=1)\n",
        "tt_circle.py": "from tt_circle import *\n",
        "tt_unknown_star.py": "from nowhere_at_all import *\n",
        "tt_broken.py": "class Net(:\n",
        "tt_latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\nclass Net: pass\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


@pytest.mark.parametrize(
    "target",
    [
        "tt_models.Net",
        "tt_models.Net.from_a_base_class",
        "tt_models.Factory.build",
        "tt_models.Factory.Inner",
        "tt_models.Factory.Inner.deep",
        "tt_models.Fast",
        "tt_models.make",
        "tt_models.c",
        "tt_models.handle",
        "tt_package.Same",
        "tt_package.Same.Same",
        "tt_package.Starred",
        "tt_package.Constant",
        "tt_namespace.part.Thing",
        "tt_lazy.Anything",
        "tt_dynamic.Made",
        "tt_circle.Anything",
        "tt_unknown_star.Anything",
        "tt_latin.Net",
        "hpctool.nets.MLP",
        "hpctool.world.World.barrier",
        "hpctool.jobs.train.run",
        "torch.optim.AdamW",
        "torch.nn.CrossEntropyLoss",
        "torch.nn.Module.forward",
        "torch.relu",
        "math.sqrt",
        "sys.exit",
        "numpy.linalg.norm",
        "h5py.File",
    ],
)
def test_what_can_be_imported_is_found(project: Path, target: str) -> None:
    assert why_not_importable(target) == ""


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("tt_models.Nett", "tt_models has no 'Nett' (it has Net)"),
        ("tt_models.local_name", "tt_models has no 'local_name'"),
        ("tt_models.inside_function", "tt_models has no 'inside_function'"),
        ("tt_models.Inner", "tt_models has no 'Inner'"),
        ("tt_models.Factory.biuld", "tt_models.Factory has no 'biuld' (it has build)"),
        ("tt_models.Factory.Inner.deeper", "tt_models.Factory.Inner has no 'deeper' (it has deep)"),
        ("tt_package.Alone", "that is a module, not a class or function in one"),
        ("tt_package.star", "that is a module, not a class or function in one"),
        ("tt_package.Starrred", "tt_package has no 'Starrred' (it has Starred)"),
        ("tt_package", "that is not an importable name of the form package.module.Name"),
        ("tt_namespace.prat", "tt_namespace has no 'prat'"),
        ("tt_namespace", "that is not an importable name of the form package.module.Name"),
        ("tt_broken.Net", "its module cannot be read (invalid syntax (tt_broken.py, line 1))"),
        ("tt_nowhere.Net", "there is no module 'tt_nowhere'"),
        ("hpctool.nets.MPL", "hpctool.nets has no 'MPL' (it has MLP)"),
        ("torch.optim.AdmaW", "torch.optim has no 'AdmaW' (it has AdamW, Adamax, Adam)"),
        ("torch.nn.CrossEntropyLos", "torch.nn has no 'CrossEntropyLos' (it has CrossEntropyLoss)"),
        ("./net.py", "that is not an importable name of the form package.module.Name"),
        ("", "that is not an importable name of the form package.module.Name"),
        (".Net", "that is not an importable name of the form package.module.Name"),
    ],
)
def test_what_cannot_be_imported_is_said_with_what_is_near(project: Path, target: str, reason: str) -> None:
    said = why_not_importable(target)
    assert said == reason or (said.startswith(f"{reason} (it has ") and "(it has" not in reason)


def test_a_module_that_was_written_a_moment_ago_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert why_not_importable("tt_new.Net") == "there is no module 'tt_new'"
    (tmp_path / "tt_new.py").write_text("class Net: pass")
    assert why_not_importable("tt_new.Net") == ""


def test_nothing_is_imported(spawn: Spawn) -> None:
    code = """
import sys
from hpctool.targets import why_not_importable
before = set(sys.modules)
assert not why_not_importable("torch.nn.CrossEntropyLoss")
assert not why_not_importable("hpctool.nets.MLP")
assert why_not_importable("torch.optim.AdmaW")
print(sorted(name for name in set(sys.modules) - before if name.startswith(("torch", "hpctool"))))
"""
    said, _ = spawn(code).communicate(timeout=60)
    assert said.strip() == "[]"
    assert "tt_models" not in sys.modules
