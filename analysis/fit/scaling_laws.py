"""Loss laws over parameters, tokens, width and depth: Kaplan, Chinchilla, width-depth.

Chinchilla (arXiv 2203.15556, approach 3): L = E + A / N^alpha + B / D^beta.
Width-depth (arXiv 2502.06857): L = E + A / width^p + B / depth^q + C / tokens^r.
Kaplan (arXiv 2001.08361, equations 1.1, 1.2, 1.5): (N_c / N)^alpha_N, (D_c / D)^alpha_D, and for
both variables [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D. As published, these have no
irreducible loss. With one, use Chinchilla's law, or `saturating` for a single variable.

All are fitted by the sum (not the mean) of the Huber loss, delta 1e-3, of ln(law) - ln(loss), from
a full grid of starts. Losses are in nats per token; logarithms are natural.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.fit.log_sum_exp import LogSumExp
from analysis.replicates import Floats

LossLaw = Literal["kaplan", "chinchilla", "width-depth"]
Variable = Literal["params", "tokens", "width", "depth"]

#: Delta of the Huber loss of ln(law) - ln(loss) (arXiv 2203.15556, appendix D.3).
DELTA = 1e-3


@dataclass(frozen=True)
class Form:
    """One formula: its variables, the names of its parameters, and its starts.

    The fitted vector [P] holds the logarithms of the coefficients (and of E), then the exponents.
    For Kaplan's law of both variables it holds alpha_N / alpha_D * ln N_c, ln D_c,
    alpha_N / alpha_D and alpha_D.
    """

    law: LossLaw
    formula: str
    variables: tuple[Variable, ...]
    coefficients: tuple[str, ...]  # one per variable
    exponents: tuple[str, ...]  # one per variable
    floor: bool  # whether there is an irreducible loss E

    @property
    def joint_kaplan(self) -> bool:
        """Whether it is Kaplan's law of both variables."""
        return self.law == "kaplan" and len(self.variables) == 2

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reported parameters: coefficients, E, exponents."""
        return (*self.coefficients, *(("E",) if self.floor else ()), *self.exponents)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of the sum as text."""
        parts = zip(self.coefficients, self.variables, self.exponents, strict=True)
        return (*(f"{a} / {x}^{b}" for a, x, b in parts), *(("E",) if self.floor else ()))

    def model(self, log_x: Floats) -> LogSumExp:
        """Return the formula as a function of the fitted vector, at points ln x [variables, n]."""
        count, points = log_x.shape
        constants = np.ones((count + self.floor, points))
        slopes = -log_x
        offset = np.zeros((count + self.floor, points))
        term = [*range(count + self.floor), *range(count)]
        if self.joint_kaplan:  # the exponent of the tokens inside the bracket is 1
            offset[1] = slopes[1]
            slopes, term = slopes[:1], term[:-1]
        return LogSumExp(
            factors=np.concatenate([constants, slopes]),
            term=np.asarray(term),
            offset=offset,
            signs=np.ones(len(offset)),
            scaled=self.joint_kaplan,
        )

    def natural(self, theta: Floats) -> dict[str, Floats]:
        """Return the reported parameters by name, [B] each, of fitted vectors [B, P]."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if self.joint_kaplan:
                first, second, ratio, outer = theta.T
                values = [np.exp(first / ratio), np.exp(second), ratio * outer, outer]
            elif self.law == "kaplan":
                values = [np.exp(theta[:, 0] / theta[:, 1]), theta[:, 1]]
            else:
                logs = len(self.variables) + self.floor
                values = [*np.exp(theta[:, :logs].T), *theta[:, logs:].T]
        return dict(zip(self.names, values, strict=True))

    def starts(self, log_x: Floats, log_y: Floats) -> Floats:
        """Return the full grid of starts [S, P], for data ln x [variables, n] and ln y [n]."""
        if self.law == "chinchilla":
            return _chinchilla_starts()
        return _balanced_starts(self, log_x.mean(axis=1), float(log_y.mean()))


def form_of(law: LossLaw, variables: Sequence[str]) -> Form:
    """Return the formula of a law for these variables. Raises KeyError if the law has none."""
    return _FORMS[law, frozenset(variables)]


_FORMS: Mapping[tuple[str, frozenset[str]], Form] = {
    (form.law, frozenset(form.variables)): form
    for form in (
        Form("kaplan", "(N_c / N)^alpha_N", ("params",), ("N_c",), ("alpha_N",), False),
        Form("kaplan", "(D_c / D)^alpha_D", ("tokens",), ("D_c",), ("alpha_D",), False),
        Form(
            "kaplan",
            "((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
            ("params", "tokens"),
            ("N_c", "D_c"),
            ("alpha_N", "alpha_D"),
            False,
        ),
        Form(
            "chinchilla",
            "E + A / N^alpha + B / D^beta",
            ("params", "tokens"),
            ("A", "B"),
            ("alpha", "beta"),
            True,
        ),
        Form(
            "width-depth",
            "E + A / width^p + B / depth^q",
            ("width", "depth"),
            ("A", "B"),
            ("p", "q"),
            True,
        ),
        Form(
            "width-depth",
            "E + A / width^p + B / depth^q + C / tokens^r",
            ("width", "depth", "tokens"),
            ("A", "B", "C"),
            ("p", "q", "r"),
            True,
        ),
    )
}


def has_allocation(form: Form, natural: Mapping[str, Floats]) -> bool:
    """Return whether a fit determines the optimal split of compute into parameters and tokens.

    It takes a law of both variables with positive exponents. `natural` are its reported parameters.
    """
    of_both = set(form.variables) == {"params", "tokens"}
    return of_both and all(float(natural[name][0]) > 0 for name in form.exponents)


def allocation_exponent(form: Form, natural: Mapping[str, Floats]) -> Floats:
    """Return b / (a + b), [B], of N_opt ~ C^(b / (a + b)), with a and b the exponents of N and D.

    C = 6 N D is fixed (arXiv 2203.15556, equation 4), so D_opt ~ C^(a / (a + b)).
    """
    a, b = (natural[name] for name in form.exponents)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(b / (a + b))


def _chinchilla_starts() -> Floats:
    """[4500, 5]: the grid of arXiv 2203.15556: ln A, ln B, ln E, alpha, beta."""
    log_coefficient = np.arange(0, 25.1, 5)
    log_floor, exponent = np.arange(-1, 1.1, 0.5), np.arange(0, 2.1, 0.5)
    grid = itertools.product(log_coefficient, log_coefficient, log_floor, exponent, exponent)
    return np.asarray(list(grid))


#: Exponents of the starts, and the number of equal parts that the terms divide the loss into.
_EXPONENTS = (0.1, 0.3, 0.6, 1.0, 2.0)
_KAPLAN_EXPONENTS = (0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
_PARTS = 6


def _balanced_starts(form: Form, middle: Floats, level: float) -> Floats:
    """Every combination of exponents and of the terms' shares of the loss at the data's middle.

    Unlike a grid of coefficients, this works in any unit: widths, depths, tokens in millions.
    """
    count = len(middle)
    if form.law == "kaplan":
        exponents = np.asarray(list(itertools.product(_KAPLAN_EXPONENTS, repeat=count)))
        if count == 1:
            return np.column_stack([level + exponents[:, 0] * middle[0], exponents[:, 0]])
        ratio, outer = exponents[:, 0] / exponents[:, 1], exponents[:, 1]
        return np.concatenate(
            [
                np.column_stack(
                    [
                        level / outer + np.log(share) + ratio * middle[0],
                        level / outer + np.log(1 - share) + middle[1],
                        ratio,
                        outer,
                    ]
                )
                for share in (0.1, 0.3, 0.5, 0.7, 0.9)
            ]
        )
    shares = [
        parts
        for parts in itertools.product(range(1, _PARTS), repeat=count + form.floor)
        if sum(parts) == _PARTS
    ]
    rows = []
    for parts in shares:
        logs = level + np.log(np.asarray(parts) / _PARTS)
        for exponents_ in itertools.product(_EXPONENTS, repeat=count):
            own = np.asarray(exponents_)
            rows.append([*(logs[:count] + own * middle), *logs[count:], *own])
    return np.asarray(rows)


def variables_array(form: Form, columns: Mapping[Variable, ArrayLike]) -> Floats:
    """Stack the columns as [variables, n] in the order of the formula."""
    return np.asarray([np.asarray(columns[name], float) for name in form.variables])
