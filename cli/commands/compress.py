"""`indistill compress`."""

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
from indistill.losses.options import LossName
from indistill.pruning.criteria import Criterion


@explain_run
def compress(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="Model spec or run of the teacher.")],
    data: DataOption,
    out: OutOption,
    student: Annotated[
        str,
        typer.Option(
            "--student",
            "-s",
            help="Model spec of the student; width:SHARE is the teacher narrowed, width:auto searches.",
        ),
    ] = "width:0.5",
    teacher_weights: Annotated[
        Path | None,
        typer.Option("--teacher-weights", help="The teacher's weights: .safetensors, or .pt with tensors alone."),
    ] = None,
    student_weights: Annotated[
        Path | None, typer.Option("--student-weights", help="Start the student from these weights.")
    ] = None,
    target_latency: Annotated[
        str | None,
        typer.Option("--target-latency", help="Of width:auto: at most this share of the teacher's latency, as 0.25x."),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option("--target-size", help="Of width:auto: at most this size of the weights, as 5MB.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start a width: student from random weights, not the teacher's.")
    ] = False,
    auxiliary: Annotated[
        str,
        typer.Option(
            "--auxiliary",
            help="A network between the two, trained first: a model spec, auto (one where they are far apart), none.",
        ),
    ] = "none",
    auxiliary_weights: Annotated[
        Path | None, typer.Option("--auxiliary-weights", help="Start the auxiliary from these weights.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair", metavar="TEACHER:STUDENT", help="Pair two stages by their nodes; repeatable, first to last."
        ),
    ] = None,
    criterion: Annotated[
        Criterion | None,
        typer.Option("--criterion", help="Which channels of a teacher's stage are kept.", show_default="the recipe's"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a student's stage that is wider than its teacher's; else skip it.")
    ] = False,
    recipe: RecipeOption = "default",
    loss: Annotated[
        LossName | None, typer.Option("--loss", help="Loss of the embedding stage.", show_default="the recipe's")
    ] = None,
    warm_up: Annotated[
        bool | None,
        typer.Option("--warm-up/--no-warm-up", help="Whether the stages come first.", show_default="the recipe's"),
    ] = None,
    faithful: Annotated[
        bool,
        typer.Option(
            "--faithful",
            help="As the published code trains, whatever the recipe has: its optimiser, its loss, its side effects.",
        ),
    ] = False,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the pairs of stages and the schedule; write nothing.")
    ] = False,
    overwrite: OverwriteOption = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Measure how close the student is.")] = True,
    resume: ResumeOption = False,
    checkpoint_every: CheckpointOption = 60,
    logger: LoggerOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
) -> None:
    """Distil a teacher into a light student by InDistill. Labels are used by loss.supervised alone."""
    from indistill.cli.early import check_sources
    from indistill.cli.inputs import (
        check_source_is_kept,
        load_auxiliary,
        read_recipe,
        read_training_pixels,
        show_loading,
        warn_of_teacher,
    )
    from indistill.cli.main import main
    from indistill.cli.output import print_run
    from indistill.cli.student import choose_student, print_trial
    from indistill.data.sets import require_labels
    from indistill.data.specs import locate_data, open_images
    from indistill.errors import InputError
    from indistill.models.specs import Argument
    from indistill.progress import show_status
    from indistill.runs.config import FAITHFUL
    from indistill.training.loggers import parse_loggers

    extra: dict[str, object] = dict(FAITHFUL) if faithful else {}
    if loss is not None:
        extra["loss.name"] = loss
    if warm_up is not None:
        extra["curriculum.warm_up"] = warm_up
    if criterion is not None:
        extra["targets.criterion"] = criterion
    chosen = read_recipe(recipe, settings, image_size=image_size, batch_size=batch_size, lr=lr, extra=extra)
    if pair and not chosen.reads_stages:
        raise InputError("--pair names stages of the warm-up, which --no-warm-up (or the recipe) leaves out")
    if (strict or criterion is not None) and not chosen.prunes:
        raise InputError("--strict and --criterion are of a warm-up that prunes, which this recipe does not have")
    if auxiliary_weights is not None and auxiliary == "none":
        raise InputError("--auxiliary-weights are of an auxiliary: name it with --auxiliary")
    loggers = parse_loggers(logger or [])
    sources = ((teacher, teacher_weights), (student, student_weights), (auxiliary, auxiliary_weights))
    check_sources(data, sources)
    with show_status("loading PyTorch"):
        import torch

        from indistill.cli.closeness import report_trained_run
        from indistill.distillation.pairing import pair_stages
        from indistill.models.loading import check_trainable, load_network
        from indistill.models.students import make_student, settle_width
        from indistill.parallel.processes import go_first, is_first, on_first
        from indistill.retrieval.evaluation.evaluate import measure_map_at_r
        from indistill.runs.auxiliary import check_hop, plan_chain, run_chain
        from indistill.runs.compress import (
            align_channels,
            check_compress,
            count_stages,
            plan_curriculum,
            prepare_compress,
            run_compress,
        )
        from indistill.runs.plan import print_pairing, print_schedule
        from indistill.runs.resume import check_output
        from indistill.runs.settings import RunSettings
        from indistill.stages.graph import parse_pairs
        from indistill.training.devices import check_compilation, start_processes

    place = start_processes(device, devices, main)
    on_first(lambda: check_output(out, overwrite=overwrite, resume=resume))
    if compiled:
        check_compilation(place)
    for model, weights in sources:
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
    choice = on_first(
        lambda: choose_student(student, student_weights, target_latency, target_size, from_scratch, run_settings)
    )
    with go_first():
        images = open_images(data, root=data_root, download=download)
    if chosen.loss.supervised != "none":
        require_labels(images, f"loss.supervised={chosen.loss.supervised}")
    arguments: dict[str, Argument] = {"image_size": chosen.data.image_size}
    torch.manual_seed(seed)  # a teacher with random weights must be the same when the run is resumed
    with show_loading("teacher", teacher):
        loaded_teacher = load_network(teacher, weights=teacher_weights, arguments=arguments, role="teacher")
    if chosen.loss.supervised == "cross-entropy":
        arguments = arguments | {"num_classes": len(images.classes)}
    if choice.target is not None:  # measured once, as times differ
        choice = on_first(lambda: settle_width(choice, loaded_teacher, chosen.data.image_size, print_trial))
    with show_loading("student", choice.spec):
        loaded_student = make_student(choice, loaded_teacher, arguments, chosen.data.image_size)
    check_trainable(loaded_student, "student")
    between = load_auxiliary(auxiliary, auxiliary_weights, loaded_teacher, loaded_student, arguments, seed)
    with show_status("finding the stages and pairing them"):
        pairing = pair_stages(
            between or loaded_teacher,
            loaded_student,
            parse_pairs(pair or []),
            warm_up=chosen.reads_stages,
            image_size=chosen.data.image_size,
            wider=("refuse" if strict else "skip") if chosen.prunes else "keep",
        )
    pixels = read_training_pixels(images, chosen)
    prepared = None
    with show_status("choosing the teacher's channels, and trying each stage"):
        pairing = align_channels(pairing, pixels, chosen, run_settings)
        if between is None:
            prepared = prepare_compress(pairing, pixels, chosen, run_settings)
        else:
            check_compress(pairing, pixels, chosen, run_settings)
            check_hop(loaded_teacher, between, pixels, chosen, run_settings)
    warn_of_teacher(loaded_teacher, chosen.preprocessing)
    if dry_run:
        print_pairing(pairing)
        stages = count_stages(pairing, chosen)
        if between is None:
            print_schedule(plan_curriculum(chosen, stages, epochs), epochs)
        else:
            first, others = plan_chain(chosen, stages, epochs)
            print_schedule((first, *others), epochs)
        return
    if between is None:
        folder = run_compress(pairing, pixels, chosen, run_settings, prepared)
    else:
        folder = run_chain(loaded_teacher, pairing, pixels, chosen, run_settings)
    if report and is_first():
        report_trained_run(folder, loaded_teacher, images, run_settings.device)
    print_run(folder)
