"""The library: what models, recipes, targets and artifacts are, and the stages between them."""
