"""Compare three caches of equal bytes on needles, and keep the records."""

from pathlib import Path

from lacache.evals.record_file import run_all
from lacache.evals.runner import EvalRunner
from lacache.evals.suite import Suite
from lacache.models import load_model

suite = Suite(
    tasks=("needle",),
    policies=("streaming", "ladder:span=15:overlap=0", "recall"),
    budgets=("0.4",),
    lengths=(512,),
    samples=2,
)
# In float32, which processors without 16-bit arithmetic compute much faster.
runner = EvalRunner(load_model("default", dtype="float32"))
# Runs that are in the file are not run again; `lacache report eval.jsonl` makes pages of it.
for outcome in run_all(runner, suite.runs(), Path("eval.jsonl")):
    assert outcome.record is not None, outcome.error
    found = outcome.record
    print(f"{outcome.spec.policy}: score {found['score']}, {found['peak_bytes'] / 2**20:.1f} MiB")
