"""RULER's 13 tasks by name."""

from lacache.evals.tasks.ruler.niah import (
    NiahMultikey1,
    NiahMultikey2,
    NiahMultikey3,
    NiahMultiquery,
    NiahMultivalue,
    NiahSingle1,
    NiahSingle2,
    NiahSingle3,
)
from lacache.evals.tasks.ruler.qa import Hotpot, Squad
from lacache.evals.tasks.ruler.ruler import Ruler
from lacache.evals.tasks.ruler.tracking import VariableTracking
from lacache.evals.tasks.ruler.words import CommonWords, FrequentWords

RULER: dict[str, type[Ruler]] = {
    task.name: task
    for task in (
        NiahSingle1,
        NiahSingle2,
        NiahSingle3,
        NiahMultikey1,
        NiahMultikey2,
        NiahMultikey3,
        NiahMultivalue,
        NiahMultiquery,
        VariableTracking,
        CommonWords,
        FrequentWords,
        Squad,
        Hotpot,
    )
}
