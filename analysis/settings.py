"""Numbers that the sweep file, the plan and the analysis share.

The plan warns before a run about what the analysis would refuse after it. This file imports
nothing, so that reading a sweep file and planning stay fast.
"""

# --- settings of a sweep file's analysis and model, where the file does not say them -----------

#: Loss [nats per token] by which a width may exceed the optimum and still be recommended.
TOLERANCE_NATS = 0.01
#: Share of groups without an optimum inside the grid that may be recommended a width, over any
#: number of looks at them; and the share of recommendations that may be false among many groups.
FALSE_RECOMMENDATIONS = 0.02
#: Snapshots of each layer whose median rank stands for the layer.
AGGREGATE_LAST = 5
#: Width multiplier whose budget the cells of equal budget keep.
REFERENCE_MULTIPLIER = 4.0
#: D is rounded to a multiple of it.
FFN_MULTIPLE = 8

# --- what a verdict needs ----------------------------------------------------------------------

#: Widths that a rank law needs: a straight line through two says nothing about its own error.
WIDTHS_FOR_A_LAW = 3
#: Widths that a loss optimum needs: each curve passes through three, and the scatter about it
#: needs the rest. With one replicate that scatter is the only noise there is to see.
WIDTHS_WITH_REPLICATES = 4
WIDTHS_WITH_ONE_REPLICATE = 6
#: Samples (tokens) per dimension of a spectrum. With fewer every rank is biased downward.
SAMPLES_PER_DIMENSION = 10
#: Passes over the training data up to which repeated data are worth nearly as much as new data
#: (arXiv 2305.16264).
PASSES_WORTH_NEW = 4.0
#: Learning rates on the grid from which on each width is judged at its own rate: a parabola has
#: three parameters. The group then has this value of the axis.
MINIMUM_RATES = 3
TUNED = "tuned per width"
