"""RULER's 13 tasks (arXiv 2404.06654), drawn by lm-eval's port of its generators.

Each sample has a seed of its own, is fitted to the length, and is cut into a context and a
question. The scores are those of RULER's `scripts/eval`: the share of the
right answers that occur in the prediction, and for the two question tasks whether any of them
does, upper and lower case being the same.

Where lm-eval's port and the original differ, the prompts are lm-eval's: the list of words (`cwe`)
has no worked example.
"""
