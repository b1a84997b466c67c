"""herder bench: tokens per second, and how near they are to what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herder.cli.command import COUNT, COUNTS, MODEL, TEXT, Argument, Command, Option, Parsed, choice
from herder.cli.generation import PROMPT_DTYPE
from herder.cli.progress import counting, transfer
from herder.cli.pull import JSON, OFFLINE
from herder.cli.terminal import note, print_json, table
from herder.core.errors import OutOfMemory, UsageError
from herder.core.sizes import bytes_text, count_text

if TYPE_CHECKING:
    from herder.evals.speed import Limits, Plan, Shares, Speed
    from herder.runtime.abi import Measured
    from herder.runtime.native import Memory
    from herder.weights.source import ModelFiles


def bench(parsed: Parsed) -> int:
    from herder.evals import speed

    if (parsed.model is None) == (parsed.synthetic is None):
        raise UsageError("name either a model or --synthetic SHAPE@FORMAT, such as llama-3.1-8b@q4_0")
    if parsed.gen_tokens < 2:
        raise UsageError(f"--gen-tokens is {parsed.gen_tokens}: must be 2 or more, for a time between two tokens")
    plan = speed.Plan(parsed.prompt_tokens, parsed.gen_tokens, parsed.streams, parsed.repeats)
    with _open(parsed) as files:
        report = _measure(files, parsed, plan)
    if parsed.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _open(parsed: Parsed) -> ModelFiles:
    if parsed.synthetic is not None:
        from herder.weights.synthetic import synthetic

        return synthetic(parsed.synthetic)
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    with transfer() as progress:
        return open_model(resolve(parsed.model, offline=parsed.offline, progress=progress))


def _measure(files: ModelFiles, parsed: Parsed, plan: Plan) -> dict[str, Any]:
    from herder.assemble import native_bytes
    from herder.core import machine
    from herder.core.batch import PAGE_TOKENS
    from herder.engine.engine import Engine
    from herder.engine.scheduler import Policy
    from herder.evals import speed
    from herder.runtime import abi
    from herder.runtime.native import BATCH_CHUNKS, load_model
    from herder.weights.names import Role

    config = files.config
    if plan.context > config.context:
        raise UsageError(
            f"--prompt-tokens and --gen-tokens make {plan.context} tokens: this model's context is {config.context}"
        )
    if max(plan.streams) > BATCH_CHUNKS:
        raise UsageError(f"--streams has {max(plan.streams)}: at most {BATCH_CHUNKS} run at once")
    per_value = 4 if parsed.dtype == "float32" else 2
    weights = native_bytes(files, parsed.dtype)
    kv = config.kv_bytes(PAGE_TOKENS * plan.pages, per_value)
    _require_memory(weights.resident + weights.active, kv, machine.memory().available)
    with transfer() as progress:
        executor = load_model(
            files,
            context=plan.context,
            kv_pages=plan.pages,
            compute=parsed.dtype,
            prompt_dtype=parsed.prompt_dtype,
            threads=parsed.threads or 0,
            progress=lambda done, total: progress("loading", done, total),
        )
    memory = executor.memory()
    with Engine(executor, Policy(reread=False)) as engine, counting("measuring", plan.steps) as progress_bar:
        measured = speed.measure(engine, config.vocab, plan, progress_bar)
    # Only the rows of the prompt's tokens are read from an embedding table that is not the head too.
    read = memory.weights - (0 if config.tied else next(t.bytes for t in files.tensors if t.role == Role.EMBED))
    # Over as many bytes as a step reads: a model that fits into a cache is judged by that cache's speed.
    machine_limits = abi.measure(parsed.threads or 0, min(max(read, 1 << 24), 1 << 30))
    peak = machine_limits.f32_flops if parsed.dtype == "float32" else machine_limits.int8_ops
    limits = speed.Limits(read, speed.operations(config), machine_limits.bandwidth, peak)
    found = speed.shares(measured, limits, config, plan, per_value)
    return {
        "model": parsed.synthetic or parsed.model,
        "parameters": config.parameters,
        **_figures(measured, found, plan),
        "limits": _limits(machine_limits, limits, memory),
        "machine": {
            "cpu": machine.cpu_name(),
            "platform": machine.platform_name(),
            "cores": machine.cores(),
            "threads": parsed.threads or machine.cores(),
            "isa": abi.cpu_info()["isa"],
            "memory_bytes": machine.memory().total,
        },
        "settings": {
            "prompt_tokens": plan.prompt,
            "gen_tokens": plan.gen,
            "repeats": plan.repeats,
            "dtype": parsed.dtype,
            "prompt_dtype": executor.prompt_dtype,
        },
        "versions": _versions(),
    }


def _require_memory(weights: int, kv: int, available: int | None) -> None:
    """Refuses what cannot fit before anything is loaded."""
    if available is not None and weights + kv > available:
        raise OutOfMemory(
            f"the weights take {bytes_text(weights)} and the KV cache of these streams {bytes_text(kv)}, but "
            f"{bytes_text(available)} of memory are free: choose a smaller shape or format, or fewer --streams"
        )


def _figures(measured: Speed, found: Shares, plan: Plan) -> dict[str, Any]:
    prefill, decode, batched = measured.medians()
    return {
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "batched_tokens_per_s": {str(n): value for n, value in batched.items()},
        "fractions": {
            "prefill_of_peak": found.prefill_of_peak,
            "decode_of_bandwidth": found.decode_of_bandwidth,
            "batched_of_bandwidth": {str(n): value for n, value in found.batched_of_bandwidth.items()},
            "batched_of_peak": {str(n): value for n, value in found.batched_of_peak.items()},
        },
        "rounds": {
            "prefill_tokens_per_s": measured.prefill,
            "decode_tokens_per_s": measured.decode,
            "batched_tokens_per_s": {str(n): values for n, values in measured.batched.items()},
        },
    }


def _limits(measured: Measured, limits: Limits, memory: Memory) -> dict[str, Any]:
    return {
        "bandwidth_bytes_per_s": measured.bandwidth,
        "int8_ops_per_s": measured.int8_ops,
        "float32_flops_per_s": measured.f32_flops,
        "weights_read_per_step_bytes": limits.weights,
        "operations_per_token": limits.operations,
        "memory_bytes": memory._asdict(),
        "formulas": {
            "decode_of_bandwidth": "tokens/s * (weights_read_per_step_bytes + KV bytes) / bandwidth_bytes_per_s",
            "batched_of_bandwidth": "tokens/s * (weights_read_per_step_bytes / N + KV bytes) / bandwidth_bytes_per_s",
            "prefill_of_peak": "tokens/s * operations_per_token / peak, and the same for batched_of_peak; "
            "peak is int8_ops_per_s, or float32_flops_per_s with dtype float32",
        },
    }


def _versions() -> dict[str, str]:
    import platform

    from herder.cli.version import number

    return {"herder": number(), "python": platform.python_version()}


def _print(report: dict[str, Any]) -> None:
    fractions, settings = report["fractions"], report["settings"]
    peak = "float32" if settings["dtype"] == "float32" else "int8"
    headings = ["", "TOKENS/S", "OF BANDWIDTH", f"OF {peak.upper()} PEAK"]
    rows = [
        [
            f"prefill {settings['prompt_tokens']}",
            _number(report["prefill_tokens_per_s"]),
            "",
            _share(fractions["prefill_of_peak"]),
        ],
        [
            f"decode {settings['gen_tokens']}",
            _number(report["decode_tokens_per_s"]),
            _share(fractions["decode_of_bandwidth"]),
            "",
        ],
    ]
    for streams, value in report["batched_tokens_per_s"].items():
        bandwidth, compute = fractions["batched_of_bandwidth"][streams], fractions["batched_of_peak"][streams]
        rows.append([f"{streams} streams", _number(value), _share(bandwidth), _share(compute)])
    table(headings, rows, right=frozenset({1, 2, 3}))
    machine, limits = report["machine"], report["limits"]
    arithmetic = [machine["isa"]]
    if settings["prompt_dtype"] is not None:
        arithmetic.append(f"prompts in {settings['prompt_dtype']}")
    operations = limits["float32_flops_per_s" if peak == "float32" else "int8_ops_per_s"]
    note(
        f"{report['model']}, {count_text(report['parameters'])} parameters, {machine['threads']} threads of "
        f"{machine['cpu']} ({', '.join(arithmetic)}): {bytes_text(limits['bandwidth_bytes_per_s'])}/s read, "
        f"{operations / 1e12:.2f} T {peak} operations/s; medians of {settings['repeats']}"
    )


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _share(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


COMMANDS = {
    "bench": Command(
        name="bench",
        summary="Measure speed, and how near it is to this machine's limits",
        run=bench,
        arguments=(Argument("model", MODEL, "A model as in `herder run`", optional=True),),
        options=(
            Option("--synthetic", TEXT, "A shape with random weights instead of a model: llama-3.1-8b@q4_0"),
            Option("--prompt-tokens", COUNT, "Tokens of the prompt", 512),
            Option("--gen-tokens", COUNT, "Tokens of each answer", 128),
            Option("--streams", COUNTS, "How many answers at once", (1, 8, 32)),
            Option("--repeats", COUNT, "Repetitions, of which the median counts", 3),
            Option("--threads", COUNT, "Threads; without it one per core this process may use"),
            Option("--dtype", choice("auto", "float32"), "auto computes in the stored formats", "auto"),
            PROMPT_DTYPE,
            JSON,
            OFFLINE,
        ),
        details="""
        Prefill: tokens of one prompt a second. Decode: tokens of one answer a second, after that prompt. Streams:
        tokens a second of N answers together, after short prompts that are in the cache.

        A step of decoding reads every packed weight and each sequence's KV entries once; its share of the bandwidth is
        that many bytes a second over the read bandwidth measured on as many bytes. A token takes two operations a
        weight of every matrix; its share of the peak is those over the measured int8 peak. --json has the formulas and
        all numbers in them.

        --synthetic tells the speed of a model before it is downloaded: it makes random weights in memory, one tensor at
        a time.
        """,
        examples=(
            "herder bench smollm2",
            "herder bench smollm2 --prompt-tokens 512 --gen-tokens 128 --streams 1,8,32 --json",
            "herder bench --synthetic llama-3.2-1b@q4_0",
        ),
    )
}
