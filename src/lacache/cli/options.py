"""Options that several commands share. What each value must be is checked where it is used."""

import os
from pathlib import Path
from typing import Annotated

import typer

_CACHE = "Cache"
_SAMPLING = "Sampling"
_MODEL = "Model"

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="balanced, local (prose, chat), global (finding what is far back) or paper. "
        "Default: balanced, unless options of one policy are given.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="A JSON file with a plan, such as groups of layers with capacities of their own; "
        "instead of a preset, a policy and its options.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="ladder, streaming or full, instead of a preset.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help="Tokens per layer (512), a share of the prompt (0.5) or bytes (64MiB). "
        "Default: 512; none for the policy full.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
SpanOption = Annotated[
    int | None,
    typer.Option(
        "--span",
        help="Layers in a row that keep a token. Default: half of the layers.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
OverlapOption = Annotated[
    int | None,
    typer.Option(
        "--overlap",
        help="Layers that neighbouring runs share. Default: 0 beside --span, else four fifths "
        "of the span.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
SinksOption = Annotated[
    int | None,
    typer.Option(
        "--sinks",
        help="First tokens, never evicted. Default: 4.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
RecentOption = Annotated[
    int | None,
    typer.Option(
        "--recent",
        help="Newest tokens that no compaction touches. Default: half of the capacity, or what "
        "the sinks and one band leave.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
EvictBatchOption = Annotated[
    int | None,
    typer.Option(
        "--evict_batch",
        help="Slots that one compaction frees. Default: an eighth of the capacity, at least 1 and "
        "no more than the sinks leave, because a long prompt is read in pieces of up to this "
        "length, and longer pieces are read much faster; 1 forgets least at a time.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
GeometryOption = Annotated[
    str | None,
    typer.Option(
        "--geometry",
        help="interleaved (the released code) or consecutive (the paper's text). "
        "Default: interleaved.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
UnitOption = Annotated[
    int | None,
    typer.Option(
        "--unit",
        help="Neighbouring tokens that are kept or dropped together. Default: 1.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
WindowLayersOption = Annotated[
    str,
    typer.Option(
        "--window-layers",
        help="Layers that drop their oldest tokens instead of thinning, such as 0-9,20. "
        "Default: none.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
PrefillOption = Annotated[
    str,
    typer.Option(
        "--prefill",
        help="chunked compacts while it reads; dense reads the prompt with a full cache first "
        "and compacts it then.",
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
    typer.Option("--top-k", help="Keep the likeliest; 0 is all.", rich_help_panel=_SAMPLING),
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p", help="Keep the likeliest that add up to this.", rich_help_panel=_SAMPLING
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p",
        help="Drop tokens less likely than this share of the likeliest.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        help="Above 1 makes tokens that stood before less likely, below 1 more; 1 is none.",
        rich_help_panel=_SAMPLING,
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        help="End the text before this string; can be given several times.",
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
WORTH_COMPILING = 2000
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the step that writes a token: slower to start (minutes the first time, "
        "seconds later on), faster from then on. Default: where 2,000 tokens or more are "
        "to be written.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="int8 halves the memory of the linear layers, and is faster. Default: as the model "
        "has them.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
KvDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype",
        help="What keys and values are stored in: int8 or float8_e4m3fn halves their memory, or "
        "doubles what fits. Default: the model's type.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
DEFAULT_THREADS = max(1, (os.cpu_count() or 1) // 2)
# Torch's own choice is all of them, and waits for the slowest at every operation.
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        help="Threads that torch computes with; by default half of the cores, because with all "
        "of them a busy machine can be many times slower.",
        rich_help_panel=_MODEL,
    ),
]
