"""From options to the objects that library calls take."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from indistill.data.pixels import Pixels, Share, StreamedPixels, load_pixels, open_pixels
from indistill.data.sets import ImageSet, sample_images
from indistill.data.specs import open_images
from indistill.errors import ExistsError, InputError, ModelError
from indistill.files.hashing import hash_file
from indistill.images import SkippedImage
from indistill.preprocess import Preprocessing
from indistill.progress import show_progress, show_status
from indistill.run_folder import Run, read_closeness, read_environment, read_run
from indistill.runs.config import Recipe, load_recipe, parse_overrides, validate_recipe
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.export.onnx import Provenance
    from indistill.models.loading import Network
    from indistill.models.specs import Argument


@dataclass(frozen=True)
class DescribedNetwork:
    """A network with what a run, or the options, say of it.

    Attributes:
        network: with its weights.
        preprocessing: what it was trained with.
        data: the data spec of its training; None where there was no run.
        default_file: where its ONNX file goes; None where there was no run.
        provenance: teacher and data.
    """

    network: "Network"
    preprocessing: Preprocessing
    data: str | None
    default_file: Path | None
    provenance: "Provenance"


def load_described(
    model: str, *, weights: Path | None = None, recipe: str | None = None, items: list[str] | None = None
) -> DescribedNetwork:
    """Returns the network of a run or of a model spec; a recipe, or `--set`, goes before the run's preprocessing.

    Raises:
        ConfigError: the recipe.
        ModelError: the model or its weights.
    """
    from indistill.export.onnx import Provenance
    from indistill.models.loading import load_network
    from indistill.stages.graph import check_image_size

    folder = Path(model.partition("?")[0])
    run = read_run(folder) if (folder / "config.yaml").is_file() else None
    if run is not None and recipe is None:
        overrides = parse_overrides(items or [])
        preprocessing = validate_recipe(str(folder), run.config["recipe"], overrides).preprocessing
    else:
        preprocessing = read_recipe(recipe or "default", items).preprocessing
    network = load_network(model, weights=weights, arguments={"image_size": preprocessing.image_size})
    check_image_size(network.module, network.embedding, preprocessing.image_size, "model")
    if run is None:
        return DescribedNetwork(network, preprocessing, None, None, Provenance())
    provenance = Provenance(run.config.get("teacher", {}).get("spec", ""), read_environment(run)["data_fingerprint"])
    file = run.weights.with_suffix(".onnx")
    return DescribedNetwork(network, preprocessing, run.config["data"], file, provenance)


def read_sample(spec: str | None, preprocessing: Preprocessing, count: int, *, root: Path | None) -> Pixels:
    """Returns some images of a data set, spread evenly over it.

    Raises:
        DataError: there is no such data, or it cannot be read.
        InputError: no data is named.
    """
    if spec is None:
        raise InputError("real images are needed: name them with --data")
    return load_pixels(sample_images(open_images(spec, root=root), count), preprocessing)


def read_recipe(
    name: str,
    items: list[str] | None,
    *,
    image_size: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    lr_section: Literal["optimiser", "supervised"] = "optimiser",
    extra: dict[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe with the options' values in it; `--set` goes last."""
    overrides = dict(extra or {})
    if image_size is not None:
        overrides["data.image_size"] = image_size
    if batch_size is not None:
        overrides["data.batch_size"] = batch_size
    if lr is not None:
        shipped = load_recipe(name, extra)  # its ratio of the two rates is kept
        section = shipped.optimiser if lr_section == "optimiser" else shipped.supervised
        overrides |= {f"{lr_section}.lr": lr, f"{lr_section}.final_lr": lr * section.final_lr / section.lr}
    return load_recipe(name, overrides | parse_overrides(items or []))


def read_training_pixels(images: ImageSet, recipe: Recipe) -> Pixels | StreamedPixels:
    """Returns the pixels of a set, in memory or streamed, with a progress bar; says how many images were skipped."""
    from indistill.parallel.processes import count_processes, exchange, get_rank

    share = Share(get_rank(), count_processes(), exchange)
    with show_progress(f"reading {images.name}", len(images.names)) as advance:
        pixels = open_pixels(images, recipe.preprocessing, advance, recipe.data.memory_limit_gb, share)
    report_skipped(pixels.skipped)
    return pixels


def report_skipped(skipped: Sequence[SkippedImage], limit: int = 5) -> None:
    """Prints how many images were skipped, and the first ones with their reasons."""
    if not skipped:
        return
    noun = "image was" if len(skipped) == 1 else "images were"
    say(f"warning: {len(skipped)} {noun} skipped:")
    for image in skipped[:limit]:
        say(f"  {image.name}: {image.reason}")
    if len(skipped) > limit:
        say(f"  and {len(skipped) - limit} more")


def check_source_is_kept(model: str, weights: Path | None, out: Path) -> None:
    """Raises ExistsError if a model is a run that the output would replace, or its weights lie there."""
    if weights is not None and weights.resolve().is_relative_to(out.resolve()):
        raise ExistsError(f"the weights {weights} lie in {out}, which would be replaced; choose another --out")
    folder = Path(model.partition("?")[0])
    if folder.exists() and folder.resolve().is_relative_to(out.resolve()):
        raise ExistsError(f"{out} is the run of the model '{model}' itself; choose another --out")


def load_auxiliary(
    spec: str,
    weights: Path | None,
    teacher: "Network",
    student: "Network",
    arguments: "Mapping[str, Argument]",
    seed: int,
) -> "Network | None":
    """Returns the auxiliary of `--auxiliary SPEC|auto|none`; for `auto`, says which one it is and why.

    Raises:
        InputError: weights of an auxiliary that there is not, or a width that is to be searched.
        ModelError: the spec or the weights cannot be used.
    """
    import torch

    from indistill.models.loading import check_trainable, load_network
    from indistill.models.students import StudentChoice, make_student, parse_width
    from indistill.runs.auxiliary import FAR_APART, choose_auxiliary

    if spec == "none":
        return None
    chosen = choose_auxiliary(teacher, student) if spec == "auto" else spec
    if spec == "auto":
        ratio = teacher.count_parameters() / student.count_parameters()
        say(
            f"auxiliary: {chosen or 'none'}, as the teacher has {ratio:,.0f} times the student's parameters "
            f"({'more' if chosen else 'not more'} than {FAR_APART})"
        )
    if chosen is None:
        if weights is not None:
            raise InputError("--auxiliary-weights: 'auto' found that no auxiliary is needed; name one with --auxiliary")
        return None
    if chosen == "width:auto":
        raise InputError("--auxiliary 'width:auto': the width of an auxiliary is not searched; name it, as width:0.3")
    if parse_width(chosen) is not None:
        size = arguments["image_size"]
        assert isinstance(size, int)
        return make_student(StudentChoice(chosen, weights, seed=seed), teacher, arguments, size)
    torch.manual_seed(seed)
    auxiliary = load_network(chosen, weights=weights, arguments=arguments, role="auxiliary")
    check_trainable(auxiliary, "auxiliary")
    return auxiliary


def show_loading(role: str, model: str) -> AbstractContextManager[None]:
    """Returns a context in which a network is built, that says so; not where weights are fetched, which has a bar."""
    from indistill.models.specs import fetches_weights, parse_model_spec

    if not model.startswith("width:") and fetches_weights(parse_model_spec(model)):
        say(f"fetching the weights of '{model}', unless they are here")
        return nullcontext()
    return show_status(f"building the {role} {model}")


def warn_of_random_weights(network: "Network", role: str, option: str) -> None:
    """Prints a warning if a paper's or a zoo's network has random weights."""
    from indistill.models.specs import explain_random_weights, has_random_weights, parse_model_spec

    spec = parse_model_spec(network.source)
    if network.weights is None and has_random_weights(spec):
        say(f"warning: the {role} '{network.source}' has random weights: {explain_random_weights(spec, option)}")


def warn_of_shortfall(model: str) -> None:
    """Prints a warning if a model is a run whose student was found to be no closer to its teacher than an untrained
    one.
    """
    from indistill.cli.closeness import find_shortfall

    folder = Path(model.partition("?")[0])
    figures = read_closeness(read_run(folder)) if (folder / "closeness.json").is_file() else None
    shortfall = None if figures is None else find_shortfall(figures)
    if shortfall is not None:
        say(f"warning: {shortfall}")


def warn_of_teacher(teacher: "Network", preprocessing: Preprocessing) -> None:
    """Prints a warning if the teacher has random weights, or was trained with another preprocessing."""
    from indistill.models.specs import parse_model_spec

    warn_of_random_weights(teacher, "teacher", "--teacher-weights")
    spec = parse_model_spec(teacher.source)
    if spec.kind == "run" and read_run(Path(spec.name)).preprocessing != preprocessing:
        say(f"warning: the teacher {spec.name} was trained with another size, crop, mean or std than the recipe's")


def describe_teacher(run: Run) -> dict[str, Any]:
    """Returns what a run says of its teacher. Raises InputError if it has none."""
    described: dict[str, Any] = run.config.get("teacher", {})
    if not described:
        raise InputError(f"{run.folder} was not written by 'compress', so it has no teacher: name one with --teacher")
    return described


def load_teacher(run: Run, teacher: str | None, weights: Path | None) -> "Network":
    """Returns the teacher of a run as it was when the run began, or another one that is named.

    Args:
        run: of `compress`, or any run where a teacher is named.
        teacher: model spec or run of another teacher.
        weights: of that teacher; without one, where the weights of the run's own teacher lie now.

    Raises:
        InputError: the run has no teacher, or its weights were random and not kept.
        ModelError: the weights are gone, or are others than those that the run began with.
    """
    from indistill.models.loading import load_network, read_narrowing
    from indistill.models.specs import has_random_weights, parse_model_spec

    size = {"image_size": run.preprocessing.image_size}
    if teacher is not None:
        return load_network(teacher, weights=weights, arguments=size, role="teacher")
    described = describe_teacher(run)
    kept = described.get("weights")
    file = weights or (Path(kept) if kept else None)
    if file is None and has_random_weights(parse_model_spec(described["source"])):
        raise InputError(
            f"the teacher of {run.folder}, '{described['source']}', had random weights, which are not kept: "
            "name another with --teacher"
        )
    if file is not None and not file.is_file():
        raise ModelError(
            f"the weights of the teacher of {run.folder} are gone: there is no file {file}; put them back, or say "
            "where they are with --teacher-weights"
        )
    if file is not None and kept and hash_file(file) != described["weights_sha256"]:
        raise ModelError(
            f"{file} is not what {run.folder} was distilled from (SHA-256 {described['weights_sha256'][:12]}...): name "
            "the right file with --teacher-weights, or another teacher with --teacher"
        )
    if file is None:
        network = load_network(described["source"], arguments=described["arguments"], role="teacher")
    else:
        network = load_network(
            described["spec"],
            weights=file,
            arguments=described["arguments"],
            role="teacher",
            narrowing=read_narrowing(described),
        )
    return replace(network, source=described["source"], embedding=described["embedding"])


def load_untrained(run: Run) -> "Network":
    """Returns the network of a run with the random weights that the run's seed gives."""
    import torch

    from indistill.models.loading import load_network, read_narrowing
    from indistill.models.resizing import reinitialise

    narrowing = read_narrowing(run.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config["seed"])
        network = load_network(
            str(run.network["spec"]), arguments=run.network["arguments"], role="student", narrowing=narrowing
        )
        if narrowing is not None:  # a part of wide layers' weights is not what narrow ones begin with
            reinitialise(network.module)
    return replace(network, embedding=run.network["embedding"])
