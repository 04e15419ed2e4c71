"""Ground truth in the form of Oxford and Paris: of each query the easy, hard and junk images. Needs no torch.

Reference: Radenović, Iscen, Tolias, Avrithis and Chum 2018, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
Benchmarking" (arXiv 1803.11285), section 3.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indistill.errors import DataError, describe_os_error, suggest_nearest
from indistill.files.documents import read_json
from indistill.retrieval.evaluation.metrics import Figures
from indistill.retrieval.evaluation.ranks import Ranks

GRADES = ("easy", "hard", "junk")
# Of each setup the grades that are positive; all other graded images are ignored, and what has no grade is negative.
SETUPS = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}
JUDGED_KS = (1, 5, 10)


@dataclass(frozen=True)
class Judgement:
    """The gallery positions of a query's graded images, ascending."""

    easy: Ranks
    hard: Ranks
    junk: Ranks

    def select(self, setup: str) -> tuple[Ranks, Ranks]:
        """Returns the positive and the ignored gallery positions of a setup."""
        grades = {grade: getattr(self, grade) for grade in GRADES}
        chosen = SETUPS[setup]
        positive = np.concatenate([grades[grade] for grade in chosen])
        ignored = np.concatenate([part for grade, part in grades.items() if grade not in chosen])
        return positive, ignored


def read_ground_truth(path: Path) -> dict[str, dict[str, list[str]]]:
    """Returns the names of easy, hard and junk gallery images by the name of the query image.

    Raises:
        DataError: the file is missing, no JSON, or of another form.
    """
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"ground truth {path} cannot be read: {describe_os_error(error)}") from error
    except ValueError as error:
        raise DataError(f"ground truth {path} is not JSON: {error}") from error
    form = 'it must be {"query image": {"easy": [gallery images], "hard": [...], "junk": [...]}, ...}'
    if not isinstance(found, dict) or not found:
        raise DataError(f"ground truth {path} has no queries: {form}")
    for query, grades in found.items():
        if not isinstance(grades, dict):
            raise DataError(f"ground truth {path}: '{query}' has no grades: {form}")
        for grade, names in grades.items():
            if grade not in GRADES:
                hint = suggest_nearest(grade, GRADES)
                raise DataError(f"ground truth {path}: '{query}' has a grade '{grade}': {form}.{hint}")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"ground truth {path}: '{grade}' of '{query}' is no list of names: {form}")
    return found


def locate_judgements(
    truth: Mapping[str, Mapping[str, Sequence[str]]], queries: Sequence[str], gallery: Sequence[str]
) -> list[Judgement | None]:
    """Returns the judgement of each query, None where the ground truth has none of it.

    Args:
        truth: see `read_ground_truth`.
        queries: their names.
        gallery: the names of its images.

    Raises:
        DataError: a name in the ground truth is neither a query's nor the gallery's, or an image has two grades.
    """
    places = {name: position for position, name in enumerate(gallery)}
    unknown = [name for name in truth if name not in set(queries)]
    if unknown:
        raise DataError(
            f"{len(unknown)} queries of the ground truth are not among the query images, the first is '{unknown[0]}': "
            f"names are relative to the folder.{suggest_nearest(unknown[0], queries)}"
        )
    for query, grades in truth.items():
        graded = [name for names in grades.values() for name in names]
        missing = [name for name in graded if name not in places]
        if missing:
            raise DataError(
                f"{len(missing)} images that the ground truth grades for '{query}' are not in the gallery, the first "
                f"is '{missing[0]}': names are relative to the folder.{suggest_nearest(missing[0], gallery)}"
            )
        twice = next((name for name in graded if graded.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"the ground truth of '{query}' names '{twice}' twice: an image has one grade")
    located = {
        query: [np.array(sorted(places[name] for name in grades.get(grade, ())), dtype=np.int64) for grade in GRADES]
        for query, grades in truth.items()
    }
    return [Judgement(*located[query]) if query in located else None for query in queries]


def list_judged(ks: Sequence[int]) -> list[str]:
    """Returns the names of what `measure_judged` gives, in its order."""
    return [name for setup in SETUPS for name in (f"map_{setup}", *(f"mp@{k}_{setup}" for k in ks))]


def measure_judged(ranking: Ranks, judgement: Judgement, ks: Sequence[int]) -> Figures:
    """Returns average precision and precision at each K in each setup; NaN in a setup without a positive image.

    Args:
        ranking: gallery positions, best first; of the whole gallery, or of what an index returned.
        judgement: of the query.
        ks: the K.
    """
    values = []
    for setup in SETUPS:
        positive, ignored = judgement.select(setup)
        if not len(positive):
            values += [np.nan] * (1 + len(ks))
            continue
        kept = ranking[~np.isin(ranking, ignored)]
        ranks = 1 + np.flatnonzero(np.isin(kept, positive))
        values += [compute_trapezoid(ranks, len(positive)), *(compute_precision(ranks, k) for k in ks)]
    return np.array(values)


def compute_trapezoid(ranks: Ranks, count: int) -> float:
    """Returns the area below precision over recall by trapezoids: the average precision of Oxford and Paris.

    The sum over the positives of the mean of the precisions just before and at their ranks, divided by their number;
    before the first rank the precision is 1.

    Args:
        ranks: of the positives that were found, from 1, ascending, ignored images not counted; may be empty.
        count: of all positives.
    """
    found = np.arange(len(ranks))
    before = np.where(ranks == 1, 1.0, found / np.maximum(ranks - 1, 1))
    return float(((before + (found + 1) / ranks) / 2).sum() / count)


def compute_precision(ranks: Ranks, k: int) -> float:
    """Returns the precision at rank k, or at that of the last positive where that comes before; 0 without a positive.

    Args:
        ranks: of the positives that were found, from 1, ascending.
        k: the rank.
    """
    if not len(ranks):
        return 0.0
    limit = min(int(ranks[-1]), k)
    return float(np.count_nonzero(ranks <= limit) / limit)
