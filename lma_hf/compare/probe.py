"""The probe: which error narrow FFNs reach with one activation or another, everything else being the same."""

import math
from dataclasses import dataclass, field

from accelerate.utils import tqdm

from lma_hf.compare.probe_fit import Recipe, error_on, fit_, start_ffn
from lma_hf.errors import TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters

COLUMNS = ("activation", "width", "layer", "seed", "learning_rate", "activation_learning_rate")
COLUMNS += ("tuning_error", "error", "chosen")


@dataclass(frozen=True)
class Plan:
    """What is probed.

    Attributes:
        arms: `Arm`s. widths: of the narrow FFNs. seeds: orders of the batches, the first of which is tuned on.
        learning_rates, activation_learning_rates: what is tried, rising. steps, batch_size: as of `Recipe`.
    """

    arms: list
    widths: list
    seeds: list
    learning_rates: list
    activation_learning_rates: list
    steps: int
    batch_size: int


@dataclass
class Probe:
    """Fits every arm at every width and layer. Args: ffns: list of `FFN`. plan: a `Plan`."""

    ffns: list
    plan: Plan
    fits: dict = field(default_factory=dict)

    def run(self):
        """Returns: rows of COLUMNS, one a fit. Raises: TrainingError if an arm diverges at every learning rate."""
        total = sum(self._num_fits(arm) * self._cost(width) for arm in self.plan.arms for width in self.plan.widths)
        layout = "{l_bar}{bar}| {elapsed}<{remaining}"
        with tqdm(total=total, desc="probe", bar_format=layout) as self.bar:
            return [row for width in self.plan.widths for arm in self.plan.arms for row in self._probe(arm, width)]

    def _cost(self, width):
        """About how long a fit takes, in some unit, for the time left."""
        # measured at hidden size 384: 3.7, 4.8 and 7.9 ms a step at the widths 96, 192 and 384
        return width + self.ffns[0].train.x.shape[1] // 2

    def _num_fits(self, arm):
        pairs = len(self.plan.learning_rates) + len(self._activation_rates(arm)) - 1
        return len(self.ffns) * (pairs + len(self.plan.seeds) - 1)

    def _activation_rates(self, arm):
        """What is tried; None alone where nothing learns by it."""
        learnable = activation_parameters(start_ffn(self.ffns[0], 1, arm.settings))
        return self.plan.activation_learning_rates if learnable else [None]

    def _probe(self, arm, width):
        """Tune an arm at a width, then run the other seeds. Returns: rows of all its fits."""
        self.fits = {}
        chosen = self._tune(arm, width)
        for seed in self.plan.seeds:
            for ffn in self.ffns:
                self._fit(arm, width, ffn, seed, chosen)
        return [
            dict(zip(COLUMNS, (arm.name, width, *key, *errors, key[2:] == chosen), strict=True))
            for key, errors in self.fits.items()
        ]

    def _tune(self, arm, width):
        """The weights' learning rate at a middling one of the activation, then the activation's own: the best pair."""
        rates, activation_rates = self.plan.learning_rates, self._activation_rates(arm)
        middle = activation_rates[len(activation_rates) // 2]
        best = self._best(arm, width, [(rate, middle) for rate in rates])
        best = self._best(arm, width, [(best[0], rate) for rate in activation_rates])
        if self._tuning_score(arm, width, best) == math.inf:
            tried = ", ".join(map(str, rates))
            raise TrainingError(f"{arm.name} at width {width} diverges at all learning_rates ({tried}); lower them")
        return best

    def _best(self, arm, width, pairs):
        return min(pairs, key=lambda pair: self._tuning_score(arm, width, pair))

    def _tuning_score(self, arm, width, rates):
        """Mean logarithm over the layers of the error on the vectors for tuning."""
        errors = [self._fit(arm, width, ffn, self.plan.seeds[0], rates)[0] for ffn in self.ffns]
        return sum(map(math.log, errors)) / len(errors) if all(map(math.isfinite, errors)) else math.inf

    def _fit(self, arm, width, ffn, seed, rates):
        """(error for tuning, error for the report) of one fit, each of which is done once."""
        key = (ffn.layer, seed, *rates)
        if key not in self.fits:
            narrow = start_ffn(ffn, width, arm.settings)
            fit_(narrow, ffn.train, Recipe(*rates, self.plan.steps, self.plan.batch_size), seed)
            self.fits[key] = error_on(narrow, ffn.tuning), error_on(narrow, ffn.report)
            self.bar.update(self._cost(width))
        return self.fits[key]
