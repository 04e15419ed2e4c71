"""`indistill train`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.interruption import explain_run
from indistill.cli.options import (
    BatchSizeOption,
    CheckpointOption,
    CompileOption,
    DataOption,
    DataRootOption,
    DeviceOption,
    DevicesOption,
    DownloadOption,
    EpochsOption,
    ImageSizeOption,
    LoggerOption,
    LrOption,
    OutOption,
    OverwriteOption,
    PrecisionOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
)


@explain_run
def train(
    model: Annotated[str, typer.Option("--model", "-m", help="Model spec, as paper:cnn-a or timm:resnet18.")],
    data: DataOption,
    out: OutOption,
    recipe: RecipeOption = "default",
    weights: Annotated[Path | None, typer.Option("--weights", help="Start from these weights.")] = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    image_size: ImageSizeOption = None,
    batch_size: BatchSizeOption = None,
    lr: LrOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    precision: PrecisionOption = "32",
    compiled: CompileOption = False,
    settings: SetOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    checkpoint_every: CheckpointOption = 60,
    logger: LoggerOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
) -> None:
    """Train a network on labelled images: a teacher, an auxiliary or a baseline."""
    from indistill.cli.early import check_sources
    from indistill.cli.inputs import check_source_is_kept, read_recipe, read_training_pixels, show_loading
    from indistill.cli.main import main
    from indistill.cli.output import print_run
    from indistill.data.sets import require_labels
    from indistill.data.specs import locate_data, open_images
    from indistill.progress import show_status
    from indistill.training.loggers import parse_loggers

    chosen = read_recipe(recipe, settings, image_size=image_size, batch_size=batch_size, lr=lr, lr_section="supervised")
    loggers = parse_loggers(logger or [])
    check_sources(data, [(model, weights)])
    with show_status("loading PyTorch"):
        import torch

        from indistill.models.loading import check_trainable, load_network
        from indistill.parallel.processes import go_first, on_first
        from indistill.retrieval.evaluation.evaluate import measure_map_at_r
        from indistill.runs.resume import check_output
        from indistill.runs.settings import RunSettings
        from indistill.runs.supervise import run_supervised
        from indistill.training.devices import check_compilation, start_processes

    place = start_processes(device, devices, main)
    on_first(lambda: check_output(out, overwrite=overwrite, resume=resume))
    if compiled:
        check_compilation(place)
    check_source_is_kept(model, weights, out)
    run_settings = RunSettings(
        out,
        locate_data(data),
        epochs,
        seed,
        place,
        overwrite,
        resume,
        checkpoint_every,
        precision,
        compiled,
        loggers=loggers,
        retrieval=measure_map_at_r,
    )
    with go_first():
        images = open_images(data, root=data_root, download=download)
    require_labels(images, "train")
    torch.manual_seed(seed)
    arguments = {"image_size": chosen.data.image_size, "num_classes": len(images.classes)}
    with show_loading("model", model):
        network = load_network(model, weights=weights, arguments=arguments)
    check_trainable(network, "model")
    pixels = read_training_pixels(images, chosen)
    print_run(run_supervised(network, pixels, chosen, run_settings), teacher=True)
