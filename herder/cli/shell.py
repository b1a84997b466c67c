"""herder completion: scripts for bash, zsh and fish, which ask `herder complete` what a line can go on with.

The scripts hold no list of options, so they never go out of date: every answer comes from the commands themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from herder.cli import verbs
from herder.cli.command import TEXT, Argument, Command, Kind, Parsed, choice
from herder.core.errors import HerderError, UsageError

SHELLS = ("bash", "zsh", "fish")
FILES = ":files"  # a line that stands for the names of files

_SCRIPTS = {
    "bash": r"""
_herder() {
    # readline cuts words at ':' and '=': take them from the line itself, and give back what follows the last cut.
    local line="${COMP_LINE:0:COMP_POINT}" current candidate cut
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[-1]}"
    cut="${current%"${current##*[:=]}"}"
    COMPREPLY=()
    while IFS= read -r line; do
        candidate="${line%%$'\t'*}"
        if [[ $candidate == ":files" ]]; then
            compopt -o default
        elif [[ $candidate == "$current"* ]]; then
            COMPREPLY+=("${candidate#"$cut"}")
        fi
    done < <(herder complete -- "${words[@]:1}" 2> /dev/null)
}
complete -F _herder herder
""",
    "zsh": r"""
#compdef herder
_herder() {
    local -a candidates
    local line files=0
    while IFS= read -r line; do
        if [[ $line == ":files"* ]]; then
            files=1
        else
            candidates+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        fi
    done < <(herder complete -- "${(@)words[2,CURRENT]}" 2> /dev/null)
    if (( ${#candidates} )); then _describe 'herder' candidates; fi
    if (( files )); then _files; fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _herder "$@"; else compdef _herder herder; fi
""",
    "fish": r"""
function __herder_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (herder complete -- $words[2..] 2> /dev/null)
        if string match -q ':files*' -- $line
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c herder -f -a '(__herder_complete)'
""",
}

_INSTALL = {
    "bash": "echo 'eval \"$(herder completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(herder completion zsh)\"' >> ~/.zshrc  (after compinit)",
    "fish": "herder completion fish > ~/.config/fish/completions/herder.fish",
}


def completion(parsed: Parsed) -> int:
    from herder.core import machine

    shell = parsed.shell or machine.shell()
    if shell not in _SCRIPTS:
        raise UsageError(f"the shell {shell or '(unknown)'!r} is not one of {', '.join(SHELLS)}: name one of them")
    print(_SCRIPTS[shell].strip())
    return 0


def complete(parsed: Parsed) -> int:
    for value, description in candidates(parsed.words):
        print(f"{value}\t{description}")
    return 0


def candidates(words: list[str]) -> Iterator[tuple[str, str]]:
    """(value, description) of what can stand in place of the last word of the line after `herder`, up to the cursor."""
    from herder.cli.__main__ import command

    current = words[-1] if words else ""
    if len(words) < 2:
        for group in verbs.VERBS.values():
            yield from ((name, verb.summary) for name, verb in group.items() if not verb.hidden)
        return
    verb = words[0]
    if verbs.find(verb) is None:
        return
    found, rest = cast(Command, command(verb)).within(words[1:])
    if found.commands:
        yield from ((one.word, one.summary) for one in found.commands if len(rest) == 1)
        return
    if not rest:  # the cursor still stands at the command's own name
        yield (current, found.summary)
        return
    before = rest[:-1]
    options = {option.flag: option for option in found.options}
    last = options.get(before[-1]) if before else None
    if last is not None and last.kind is not None:
        yield from _values(last.kind)
        if last.bare is None:
            return
    flag, equals, _ = current.partition("=")
    if equals and flag in options and (kind := options[flag].kind) is not None:
        yield from ((f"{flag}={value}", text) for value, text in _values(kind) if value != FILES)
        return
    if current.startswith("-"):
        yield from ((option.flag, option.help) for option in found.options)
        yield ("--help", "Print this help")
        return
    argument = _argument(found, before)
    if argument is not None:
        yield from _values(argument.kind)


def _argument(command: Command, before: list[str]) -> Argument | None:
    """The positional that the cursor stands at, None when there are no more."""
    options = {option.flag: option for option in command.options}
    count = 0
    taken = False  # by the option in front
    for word in before:
        option = options.get(word)
        if not taken and not word.startswith("-"):
            count += 1
        taken = option is not None and option.kind is not None and option.bare is None
    return command.arguments[count] if count < len(command.arguments) else None


def _values(kind: Kind) -> Iterator[tuple[str, str]]:
    if kind.complete == "file":
        yield (FILES, "")
    elif kind.complete == "model":
        yield from _models()
        yield (FILES, "")
    else:
        yield from ((word, "") for word in kind.complete.split())


def _models() -> Iterator[tuple[str, str]]:
    from herder.core.sizes import bytes_text
    from herder.weights import registry, store

    try:
        here = {model.name: bytes_text(model.bytes) for model in store.list_models()}
    except (HerderError, OSError):  # a cache that cannot be read must not break the shell's line
        here = {}
    yield from here.items()
    yield from ((name, f"{entry.title}, not fetched") for name, entry in registry.MODELS.items() if name not in here)


COMMANDS = {
    "completion": Command(
        name="completion",
        summary="Print the shell completion for bash, zsh or fish",
        run=completion,
        arguments=(Argument("shell", choice(*SHELLS), "The shell; the login shell if left out", optional=True),),
        examples=tuple(_INSTALL.values()),
    ),
    "complete": Command(
        name="complete",
        summary="Print what a command line can go on with",
        run=complete,
        arguments=(Argument("words", TEXT, "The line after `herder`, up to the cursor", many=True),),
    ),
}
