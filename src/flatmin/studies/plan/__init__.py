"""What to do: which cells a study has, as a function of the rows so far.

`tuning` has the idea (a method in a setting, with the candidates that tuning chooses from) and the
protocol `Plan`, which workers ask what is next. There are two plans: `comparison.Comparison`, that
of `flatmin compare`, and `grid.ScaledRecipe`, a recipe at a scale. `opening` fits a comparison to
its data and opens its folder, where `identity` tells which rows may stand. `recipe` finds and
checks the files under recipes/, whose pieces `schema` describes; `serialization` keeps plans in a
database.
"""
