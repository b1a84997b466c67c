"""A conversation as data: what was said, with which settings, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from herder.core import machine
from herder.core.errors import StorageError, UsageError
from herder.core.request import Sampling

_SAMPLING = {one.name for one in fields(Sampling)} - {"logprobs", "logit_bias"}
_ROLES = ("user", "assistant")


@dataclass(slots=True)
class Conversation:
    """messages: {"role": "user" | "assistant", "content": text}, in turns; a user's content may be a list of parts,
    with images as data URLs. settings: sampling options and max_tokens that differ from the model's own."""

    model: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def prompt(self) -> list[dict[str, Any]]:
        """What the model is given: the system message, then everything said."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return system + self.messages

    def set(self, name: str, value: Any) -> None:
        """Changes a setting; None goes back to the model's own. Raises UsageError for a value out of range."""
        changed = {key: old for key, old in self.settings.items() if key != name}
        if value is not None:
            changed[name] = value
        check_settings(changed)
        self.settings = changed

    def save(self, path: Path) -> None:
        """Writes the conversation, whole or not at all. Raises StorageError."""
        from herder.weights.storage import whole

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as file:
                file.write(json.dumps(asdict(self), ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def check_settings(settings: dict[str, Any]) -> None:
    """Raises UsageError for a setting that does not exist or is out of range."""
    known = {*_SAMPLING, "max_tokens"}
    for name in settings:
        if name not in known:
            raise UsageError(f"there is no setting {name!r}: known are {', '.join(sorted(known))}")
    limit = settings.get("max_tokens", 1)
    if not isinstance(limit, int) or limit < 1:
        raise UsageError(f"max_tokens is {limit!r}: must be a whole number, 1 or more")
    try:
        Sampling(**{name: value for name, value in settings.items() if name in _SAMPLING})
    except TypeError:
        raise UsageError(f"the settings {settings} are not numbers") from None


def saved_path(name: str) -> Path:
    """A path as it is; a plain name belongs to the directory of saved conversations."""
    path = Path(name).expanduser()
    if path.parent != Path() or path.suffix == ".json":
        return path
    return machine.state_home() / "chats" / f"{name}.json"


def saved_names() -> list[str]:
    return sorted(path.stem for path in (machine.state_home() / "chats").glob("*.json"))


def load(path: Path) -> Conversation:
    """Reads a saved conversation. Raises UsageError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise UsageError(f"{path} is no saved conversation: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} is no saved conversation: it holds {type(data).__name__} and not an object")
    known = {one.name for one in fields(Conversation)}
    if unknown := sorted(set(data) - known):
        raise UsageError(
            f"{path} has {unknown[0]!r}, which no saved conversation has: known are {', '.join(sorted(known))}"
        )
    messages, settings = data.get("messages", []), data.get("settings", {})
    right = isinstance(messages, list) and all(
        isinstance(one, dict)
        and set(one) == {"role", "content"}
        and one["role"] in _ROLES
        and (isinstance(one["content"], str) or (one["role"] == "user" and isinstance(one["content"], list)))
        for one in messages
    )
    if not right:
        raise UsageError(f"{path}: messages must be a list of objects with role ({' or '.join(_ROLES)}) and content")
    for at, one in enumerate(messages):
        if isinstance(one["content"], list):
            from herder.chat.message import read_message

            read_message(one, f"{path}: messages[{at}]", files=False)
    if not isinstance(data.get("model"), str) or not isinstance(data.get("system"), str | None):
        raise UsageError(f"{path}: model must be text, and system text or null")
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: settings must be an object")
    check_settings(settings)
    return Conversation(data["model"], data.get("system"), messages, settings)
