"""The parser, the help texts and the frozen surface of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.cli import verbs
from herder.cli.__main__ import command
from herder.cli.command import COUNTS, INTEGER, NUMBER, TEXT, Argument, Command, Option
from herder.core.errors import UsageError
from tests.cli.conftest import Run

SURFACE = Path(__file__).with_name("surface.txt")

EXAMPLE = Command(
    name="do",
    summary="Do it",
    run=lambda parsed: 0,
    arguments=(Argument("what", TEXT, "What"), Argument("how", TEXT, "How", optional=True)),
    options=(
        Option("--count", INTEGER, "How often", 1),
        Option("--heat", NUMBER, "How hot"),
        Option("--loud", None, "Say it"),
        Option("--tag", TEXT, "A tag", many=True),
        Option("--top", INTEGER, "May stand alone", bare=0),
        Option("--sizes", COUNTS, "Several", (1, 2)),
    ),
)


def commands() -> dict[str, Command]:
    return {name: cast(Command, command(name)) for name in verbs.names(hidden=True)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a", {"what": "a", "how": None, "count": 1, "heat": None, "loud": False, "tag": [], "top": None}),
        ("a b", {"what": "a", "how": "b"}),
        ("a --count 3 b", {"what": "a", "how": "b", "count": 3}),
        ("--loud a", {"loud": True, "what": "a"}),
        ("a --heat -0.5", {"heat": -0.5}),
        ("a --heat=-1e3", {"heat": -1000.0}),
        ("a -5", {"how": "-5"}),
        ("a -- --loud", {"how": "--loud", "loud": False}),
        ("a -", {"how": "-"}),
        ("a --tag x --tag=y", {"tag": ["x", "y"]}),
        ("a --tag -x", {"tag": ["-x"]}),
        ("a --top", {"top": 0}),
        ("a --top 4 b", {"top": 4, "how": "b"}),
        ("a --top b", {"top": 0, "how": "b"}),
        ("a --top --loud", {"top": 0, "loud": True}),
        ("a --sizes 1,8,32", {"sizes": (1, 8, 32)}),
        ("a --count 1 --count 2", {"count": 2}),
    ],
)
def test_parsing(line: str, expected: dict[str, Any]) -> None:
    parsed = vars(EXAMPLE.parse(line.split()))
    assert {name: parsed[name] for name in expected} == expected
    assert set(parsed) == {"what", "how", "count", "heat", "loud", "tag", "top", "sizes"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "WHAT is missing: herder do WHAT [HOW] [OPTIONS]"),
        ("a b c", "'c' is one argument too many"),
        ("a --cuont 1", "there is no option --cuont: did you mean --count?"),
        ("a --zzz", "there is no option --zzz ("),
        ("a --count", "--count needs a value: --count N"),
        ("a --count --loud", "--count needs a value"),
        ("a --count x", "--count is 'x': must be a whole number"),
        ("a --count=", "--count is '': must be a whole number"),
        ("a --loud=1", "--loud takes no value"),
        ("a --sizes 1,0", "--sizes is '1,0': must be whole numbers, 1 or more"),
        ("a --top=x", "--top is 'x': must be a whole number"),
        ("a -x", "there is no option -x"),
    ],
)
def test_refusals(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        EXAMPLE.parse(line.split())
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("(`herder do --help` lists what there is)")


@given(
    st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["--count", "--", "--top", "--tag", "--loud", "1", "-"])))
)
def test_whatever_is_typed_is_understood_or_refused(words: list[str]) -> None:
    try:
        parsed = EXAMPLE.parse(words)
    except UsageError as error:
        assert "\n" not in str(error) or any("\n" in word for word in words)
    else:
        assert isinstance(parsed.count, int) and isinstance(parsed.what, str)


def test_the_surface_is_frozen() -> None:
    """Commands, arguments, options and defaults are a promise: scripts depend on them. A change here is a change of the
    product; `python -m tests.cli.test_command` writes the file anew."""
    assert surface() == SURFACE.read_text(encoding="utf-8")


def surface() -> str:
    lines = []
    for name, verb in commands().items():
        for found in (verb, *verb.commands):
            lines.append(found.usage)
            for option in found.options:
                default = "" if option.default is None else f" [{option.default}]"
                lines.append(f"  {option.usage}{default}{' ...' if option.many else ''}")
        assert name == verb.name
    return "\n".join(lines) + "\n"


def test_every_verb_is_there_and_explained(run: Run) -> None:
    overview = run("--help")
    assert overview.code == 0 and overview.err == ""
    assert run().out == run("help").out == overview.out
    for name, found in commands().items():
        verb = verbs.find(name)
        assert verb is not None and found.summary == verb.summary
        if verb.hidden:
            continue
        assert f"\n  {name} " in overview.out
        result = run(name, "--help")
        assert result.code == 0 and found.usage in result.out and result.err == ""
        assert result.out == run(name, "-h", "--nonsense").out == run("help", name).out
        assert max(len(line) for line in result.out.splitlines()) <= 100
        for one in (found, *found.commands):
            shown = run(*one.name.split(), "--help").out
            assert not one.summary.endswith(".") and one.usage in shown
            for option in one.options:
                assert option.usage in shown and option.help and not option.help.endswith(".")


def test_a_verb_of_several_words(run: Run) -> None:
    whole = run("keys", "--help")
    assert whole.code == 0 and whole.out == run("help", "keys").out
    assert "herder keys create|list|revoke|usage" in whole.out and "  revoke  End a key" in whole.out
    assert run("keys", "create", "--help").out == run("help", "keys", "create").out != whole.out
    assert run("keys").err.startswith("herder: herder keys needs one of create, list, revoke, usage (`herder ")
    assert run("keys", "crate").err.startswith("herder: there is no command keys 'crate': did you mean create? (")
    assert run("keys", "create").err.startswith("herder: NAME is missing: herder keys create NAME [OPTIONS] (")


def test_no_command_has_an_option_twice() -> None:
    for found in (one for verb in commands().values() for one in (verb, *verb.commands)):
        names = [option.name for option in found.options] + [argument.name for argument in found.arguments]
        assert len(set(names)) == len(names), found.name


def test_no_verb_of_that_name(run: Run) -> None:
    assert run("rnu") == (2, "", "herder: there is no command 'rnu': did you mean run? (`herder --help` lists them)\n")
    assert "did you mean `herder run smollm2`?" in run("smollm2").err


def test_version(run: Run) -> None:
    result = run("version")
    assert result.code == 0 and result.out.startswith("herder ")
    assert run("--version").out == result.out
    assert run("version", "--json").out.startswith('{"version": ')


def test_help_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys; from herder.cli.__main__ import main\n"
        "for words in (['--help'], ['run', '--help'], ['complete', '--', 'run', 's'], ['version']): main(words)\n"
        "heavy = {'numpy', 'rich', 'prompt_toolkit', 'huggingface_hub', 'jinja2', 'tokenizers', 'torch', 'typer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    SURFACE.write_text(surface(), encoding="utf-8")
