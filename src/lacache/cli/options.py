"""Options that several commands share; the code that uses a value validates it."""

import os
from typing import Annotated

import typer

_CACHE = "Cache"
_SAMPLING = "Sampling"
_MODEL = "Model"

PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        help="Which tokens are kept: balanced, recall (more of what is far back, at some cost in "
        "prose), paper, ladder, streaming or full, with settings after colons, such as "
        "ladder:span=15:overlap=0; or @FILE with such a text.",
        rich_help_panel=_CACHE,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help="Tokens per layer (512), a share of the prompt (0.5) or bytes (64MiB). "
        "Default: 512; none for full and groups.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
PrefillOption = Annotated[
    str,
    typer.Option(
        "--prefill",
        help="chunked evicts during the prefill; dense prefills with a full cache and evicts "
        "afterwards.",
        rich_help_panel=_CACHE,
    ),
]

TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature",
        "-t",
        help="0 always takes the most likely token.",
        rich_help_panel=_SAMPLING,
    ),
]
TopKOption = Annotated[
    int,
    typer.Option(
        "--top-k",
        help="Sample from this many most likely tokens; 0 is all.",
        rich_help_panel=_SAMPLING,
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p",
        help="Sample from the most likely tokens that add up to this.",
        rich_help_panel=_SAMPLING,
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p",
        help="Exclude tokens less likely than this share of the most likely one.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        help="Above 1 makes repeated tokens less likely, below 1 more likely; 1 is off.",
        rich_help_panel=_SAMPLING,
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        help="Stop before this string; may be given several times.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="The same seed gives the same text. Default: a new one each time.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A directory, a .gguf file or a hub name. Default: the embedded "
        "SmolLM2-135M-Instruct.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option("--dtype", help="auto, bfloat16, float16 or float32.", rich_help_panel=_MODEL),
]
CalibrateOption = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        envvar="LACACHE_CALIBRATE",
        help="Before the first use of a model, find its retrieval heads if the policy needs them, "
        "in minutes (lacache calibrate).",
        rich_help_panel=_MODEL,
    ),
]
WORTH_COMPILING = 2000
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the decode step: a slower start (minutes the first time, seconds later), "
        "and faster decoding. Default: for 2,000 new tokens or more.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="file: as a GGUF file has them, in 4 to 8 bits. int4: rounded, the embedding and the "
        "head to 8 bits. int8: the linear layers rounded. model: in the model's type. Default: "
        "file for GGUF files and the default model, else model.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
KvDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype",
        help="Type of keys and values: int8 halves their memory, or doubles the tokens of a budget "
        "in bytes; int4 halves it again, at some cost in quality. Default: the model's type.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
DEFAULT_THREADS = max(1, (os.cpu_count() or 1) // 2)
# Torch's default is all cores, and each operation waits for the slowest.
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        help="Threads that torch computes with; by default half of the cores, since a busy "
        "machine can be many times slower with all of them.",
        rich_help_panel=_MODEL,
    ),
]
