"""The kinds of work that a batch job can do."""

from collections.abc import Mapping

from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import FINETUNE, FinetuneWork
from neox_serve.core.jobs.quantize import QUANTIZE, QuantizeWork
from neox_serve.core.jobs.rows import EMBED, GENERATE, RowsWork

Work = RowsWork | FinetuneWork | EvaluateWork | QuantizeWork
"""What a job does. Each type defines the options of its kinds: names, types, defaults, allowed values and help texts."""

WORK_TYPES: Mapping[str, type[Work]] = {
    GENERATE: RowsWork,
    EMBED: RowsWork,
    FINETUNE: FinetuneWork,
    EVALUATE: EvaluateWork,
    QUANTIZE: QuantizeWork,
}
"""The type of work of each kind of job."""


def makes_calls(work: Work) -> bool:
    """Returns whether a job with this work sends requests to the cluster as its tenant."""
    return isinstance(work, EvaluateWork) or (isinstance(work, RowsWork) and not work.own_engine)
