"""Configuration files for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from askonce_queue.errors import ConfigError
from askonce_worker.config import Settings, load_settings

MODEL = """
[models.gpt]
kind = "openai"
base_url = "https://api.example.com/v1"
model = "gpt-5-mini"
"""
TASK = f"""{MODEL}
[tasks.intent]
model = "gpt"
"""


class ConfigLoader:
    """Writes `askonce.toml` to `folder`, the working directory, and loads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str | bytes) -> Settings:
        path = Path("askonce.toml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(path)

    def error(self, text: str | bytes) -> str:
        """The message of the one error in `text`, without the file's name."""
        with pytest.raises(ConfigError) as caught:
            self(text)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.startswith("askonce.toml: ")
        return message.removeprefix("askonce.toml: ")
