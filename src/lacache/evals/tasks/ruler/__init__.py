"""RULER's 13 tasks (arXiv 2404.06654), drawn by lm-eval's port of its generators.

lm-eval draws the texts; here they are given a seed per sample, fitted to a length one by one, and
cut into a context and a question. The scores are those of RULER's `scripts/eval`: the share of the
right answers that occur in the prediction, and for the two question tasks whether any of them
does, upper and lower case being the same.

Where lm-eval's port and the original differ, the prompts are lm-eval's: the list of words (`cwe`)
comes without a worked example.
"""
