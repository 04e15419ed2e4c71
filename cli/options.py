"""Options that several commands share."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.training.precision import PrecisionName


def complete_recipe(incomplete: str) -> list[str]:
    """Returns the names of the shipped recipes that begin so; a shell goes on with files where there is none."""
    names = (path.name.removesuffix(".yaml") for path in resources.files("indistill.recipes").iterdir())
    return sorted(name for name in names if name.startswith(incomplete) and not name.startswith("_"))


DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Images: a folder (classes by sub-folder, or none), a .csv, .jsonl or .parquet with a column 'path', .tar "
        "shards, a saved Hugging Face data set, or NAME/SPLIT of digits, cifar10, cifar100, fashionmnist, cub200 or "
        "imagenet. See docs/data.md.",
    ),
]
IndexArgument = Annotated[
    str, typer.Argument(help="The index folder; or a collection of Milvus, as http://HOST:19530#NAME or FILE.db#NAME.")
]
CollectionModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="The model of a collection, where this machine has not seen it.")
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="Shipped (cifar10, cifar100, cub200, default, digits, fashionmnist, imagenet, paper), or a .yaml file.",
        autocompletion=complete_recipe,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, help="Scale the schedule to this total in proportion; each stage keeps one at least."
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of initial weights, order and augmentation.")
]
ImageSizeOption = Annotated[
    int | None, typer.Option("--image-size", min=1, help="Side of the network's input in pixels.")
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", min=2, help="Images in a training batch.")]
LrOption = Annotated[float | None, typer.Option("--lr", help="Learning rate; the final one keeps its ratio to it.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DevicesOption = Annotated[
    int,
    typer.Option(
        "--devices",
        min=1,
        help="Processes that train together on this machine, one for each GPU, or on the CPU; see docs/training.md.",
    ),
]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(
        "--precision", help="Of the networks: float32, or mixed with bfloat16 or float16; losses are float32."
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Run the student through torch.compile; with one process.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a value of the recipe; repeatable."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an older output.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with a run that was cut off, as if it had not been; else as before.")
]
CheckpointOption = Annotated[
    float, typer.Option("--checkpoint-every", min=0, help="Seconds between checkpoints within an epoch.")
]
LoggerOption = Annotated[
    list[str] | None,
    typer.Option("--logger", metavar="NAME", help="Log each epoch to tensorboard, wandb or mlflow too; repeatable."),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="Where the data sets that have a name lie.", show_default="~/.cache/indistill"),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch or unpack a data set that is not there, as torchvision can.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HitFormat = Literal["table", "paths", "paths0", "json", "jsonl", "csv", "html"]
