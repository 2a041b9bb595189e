"""The ladder as a press of kvpress (`docs/kvpress.md`).

kvpress and the rest of this package ask for versions of transformers that exclude each other. So
this folder imports nothing of `lacache` but `lacache.policies`, and nothing of transformers.
"""

from lacache.integrations.kvpress.press import LadderPress

__all__ = ["LadderPress"]
