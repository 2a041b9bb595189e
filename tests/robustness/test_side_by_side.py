"""Two of the same command at once: nothing of either is lost."""

import json
import subprocess
import sys
from pathlib import Path

# As long as those of a perplexity, which a system does not write at once.
APPEND = """
import sys
from pathlib import Path
from lacache.common.records import append_record
for number in range(40):
    append_record(Path(sys.argv[1]), {"who": sys.argv[2], "number": number, "nll": [0.5] * 20_000})
"""


def test_records_of_two_processes_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    command = [sys.executable, "-c", APPEND, str(path)]
    processes = [subprocess.Popen([*command, who]) for who in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for who in "ab":
        assert [r["number"] for r in records if r["who"] == who] == list(range(40))
