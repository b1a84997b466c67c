"""herder pack: a model's weights, packed, kept on disk, so that loading it is a map."""

from __future__ import annotations

from herder.cli.command import Argument, Command, Option, Parsed
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import note, print_json, table
from herder.core.errors import UsageError
from herder.core.sizes import bytes_text


def pack(parsed: Parsed) -> int:
    if parsed.model is None:
        if parsed.remove:
            raise UsageError("--remove needs a MODEL: `herder pack` lists those that are kept packed")
        return _list(parsed)
    from herder.runtime.packing import store
    from herder.runtime.prepacked import path_of
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    with transfer() as progress:
        model = resolve(parsed.model, offline=parsed.offline, progress=progress)
        with open_model(model) as files:
            if not parsed.remove:
                path, size = store(files, progress=progress)
            elif (path := path_of(files)).exists():
                size = path.stat().st_size
                path.unlink()
            else:
                raise UsageError(f"{parsed.model} is not kept packed: `herder pack` lists those that are")
    if parsed.json:
        print_json({"path": str(path), "bytes": size, "removed": bool(parsed.remove)})
    elif parsed.remove:
        note(f"removed {path}, {bytes_text(size)} freed")
    else:
        note(f"{bytes_text(size)}; `herder pack --remove {parsed.model}` gives them back")
        print(path)
    return 0


def _list(parsed: Parsed) -> int:
    from herder.runtime.prepacked import stored

    found = stored()
    if parsed.json:
        print_json([{"path": str(path), "bytes": size, "model": model or None} for path, size, model in found])
    elif found:
        lines = [[bytes_text(size), model or "(damaged: delete it)", str(path)] for path, size, model in found]
        table(["SIZE", "MODEL", "PATH"], lines, right=frozenset({0}))
    else:
        note("no model is kept packed: `herder pack MODEL` does it")
    return 0


COMMANDS = {
    "pack": Command(
        name="pack",
        summary="Keep a model's packed weights on disk, so that it loads at once",
        run=pack,
        arguments=(Argument(MODEL_ARGUMENT.name, MODEL_ARGUMENT.kind, "Without it: list what is kept", optional=True),),
        options=(Option("--remove", None, "Delete the model's packed weights"), JSON, OFFLINE),
        details="""
        The native core rearranges a model's weights each time it loads them: seconds for a model of several gigabytes.
        This does it once and keeps the result in HERDER_HOME/packed; from then on loading maps it, several processes
        share one copy, and memory that runs short can be taken back by the system. It takes about as much disk as the
        model, so it is done only when asked for, and refused where less than 2 GiB would stay free. When the model's
        file or the core's layout has changed the kept weights are not used; pack again to replace them.
        """,
        examples=("herder pack llama3.2", "herder pack", "herder pack --remove llama3.2"),
    )
}
