"""The only loop in the system: propose a recipe, apply it, build it for the target, measure it, certify the winner.

:func:`alula.search.explore.compress` runs it; :class:`alula.search.result.Frontier` is what it returns.
"""
