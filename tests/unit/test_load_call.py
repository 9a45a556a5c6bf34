"""Loading a Python callable by name, from the folder of its configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from askonce_queue.errors import ConfigError
from askonce_worker.models.python import load_call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules to load; `sys.path` and the loaded modules are restored afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    package = tmp_path / "askonce_given"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(
        "from askonce_given import words\nnumber = 3\n"
        "def call(text):\n    return words.WORDS.get(text, 'ham')\n"
    )
    (package / "words.py").write_text("WORDS = {'buy now': 'spam'}\n")
    (package / "needy.py").write_text("import askonce_not_installed\n")
    (package / "broken.py").write_text("def call(text:\n")
    (package / "script.py").write_text("import sys\nsys.exit(2)\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("askonce_given")]:
        del sys.modules[name]


def test_a_callable_is_loaded_with_its_neighbours(folder: Path) -> None:
    call = load_call("askonce_given.good:call", folder)
    assert [call("buy now"), call("hi")] == ["spam", "ham"]
    assert sys.path[0] == str(folder.resolve())


def test_a_folder_is_not_put_on_the_path_twice(folder: Path) -> None:
    for _ in range(3):
        load_call("askonce_given.good:call", folder)
    assert sys.path.count(str(folder.resolve())) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("askonce_given.good", "'package.module:function'"),
        ("askonce given:call", "'package.module:function'"),
        (".good:call", "'package.module:function'"),
        ("askonce_absent:call", "no module 'askonce_absent'"),
        ("askonce_given.absent:call", "no module 'askonce_given.absent'"),
        ("askonce_given.needy:call", "No module named 'askonce_not_installed'"),
        ("askonce_given.broken:call", "SyntaxError"),
        ("askonce_given.script:call", "SystemExit: 2"),
        ("askonce_given.good:absent", "has no function 'absent'"),
        ("askonce_given.good:number", "is of type int, not a function"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_call(spec, folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
