"""LongBench v1's 21 tasks (arXiv 2308.14508), with their own data, prompts and metrics.

Prompts, answer lengths and metrics are those that lm-eval keeps (`lm_eval/tasks/longbench`), with
the white space of the original's `config/dataset2prompt.json` where lm-eval lost it. As in the
original's `pred.py` and `eval.py`, a prompt that is too long loses its middle, and of an answer to
the four few-shot tasks the first line counts. Unlike there, a length counts the answer too, and no
chat template is put around the prompt. lm-eval's code similarity passes over blank lines, the
original's does not.
"""
