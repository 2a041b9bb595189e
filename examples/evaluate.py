"""Compare three caches of equal bytes on needles, and keep the records."""

from pathlib import Path

from lacache.evals.campaign import run_all
from lacache.evals.runs import Bench
from lacache.evals.suite import Suite
from lacache.models import load_model

suite = Suite(
    tasks=("needle",),
    methods=("streaming", "ladder:span=15,overlap=0", "preset:preset=global"),
    budgets=("0.4",),
    lengths=(512,),
    ppl_budgets=(),
    ppl_lengths=(),
    samples=2,
)
bench = Bench(load_model("default"))
# Runs that are in the file are not run again; `lacache report eval.jsonl` makes pages of it.
for outcome in run_all(bench, suite.runs(), Path("eval.jsonl")):
    assert outcome.record is not None, outcome.error
    found = outcome.record
    print(f"{found['method']}: score {found['score']}, {found['peak_bytes'] / 2**20:.1f} MiB")
