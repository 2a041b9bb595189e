"""The paper's tables (arXiv 2507.14204) as lists of runs, for users who have the weights.

A new recipe is one file and one row in the table. What a recipe takes from the paper or from its
released code (github.com/GATECH-EIC/LaCache), and what neither of them says, stands in its file.
"""

from lacache.evals.recipes.longbench import LONGBENCH_LLAMA2
from lacache.evals.recipes.needle import NEEDLE_LLAMA32
from lacache.evals.recipes.recipe import Recipe
from lacache.evals.recipes.ruler import RULER_LONGCHAT
from lacache.evals.recipes.wikitext import WIKITEXT_16K

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (RULER_LONGCHAT, WIKITEXT_16K, LONGBENCH_LLAMA2, NEEDLE_LLAMA32)
}

__all__ = ["RECIPES", "Recipe"]
