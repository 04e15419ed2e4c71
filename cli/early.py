"""What can be refused at once, before anything is imported that takes seconds. Needs no torch."""

from collections.abc import Iterable
from pathlib import Path

from indistill.data.specs import check_data_spec
from indistill.models.files import check_weights_file
from indistill.models.specs import check_name, parse_model_spec

NO_SPECS = ("none", "auto")  # of --auxiliary
WIDTH = "width:"


def check_sources(data: str | None, models: Iterable[tuple[str, Path | None]]) -> None:
    """Finds out whether data, models and weights are there, as far as their names tell.

    Args:
        data: a data spec, if one is given.
        models: model specs, or widths, each with its weights if they are given.

    Raises:
        DataError: there is no such data.
        ModelError: there is no such model, or no such file of weights.
    """
    if data is not None:
        check_data_spec(data)
    for model, weights in models:
        if model not in NO_SPECS and not model.startswith(WIDTH):
            check_name(parse_model_spec(model))
        if weights is not None:
            check_weights_file(weights)
