"""What is one text: specs of models and data, addresses, collections, index types, sizes, counts, widths, pairs."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.fuzz.targets.manifests import use_images
from benchmarks.fuzz.texts import change_text, draw_text
from indistill.cli.commands.plan import read_count
from indistill.cli.early import check_sources
from indistill.cli.index_type import SIZES, TIMES_MS, read_unit
from indistill.data.specs import locate_data, open_images
from indistill.export.hub import check_repository
from indistill.models.loading import load_network
from indistill.models.specs import make_absolute, parse_model_spec, strip_weights
from indistill.models.students import parse_width
from indistill.retrieval.capacity import Rates, choose_code, plan_gallery
from indistill.retrieval.index_types.types import check_factory
from indistill.retrieval.milvus.location import name_collection
from indistill.retrieval.opening import locate_index
from indistill.stages.graph import parse_pairs
from indistill.training.devices import choose_device
from indistill.training.loggers import parse_loggers

NAMES = (
    "pretrained",
    "num_classes",
    "embedding",
    "image_size",
    "width",
    "in_chans",
    "weights",
    "img_size",
    "drop_rate",
)
MODELS = ("paper:cnn-s", "paper:resnet18", "timm:test_vit", "torchvision:resnet18", "os:getcwd", "a.b:c", "model.py:f")
DATA = ("digits/train", "cifar10/test", "file:///tmp/none", "memory://a/b", "s3://bucket/{0..9}.tar", "a-{00..9}.tar",
        "x.tar", "photos", "github://a:b@c/", "zip://*::file:///a.zip", "local://./", "{0..99999999}.tar")  # fmt: skip
PLACES = (
    "http://127.0.0.1:1#c",
    "http://[::1#c",
    "tcp://host:0#a",
    "a.db#b",
    "http://u:p@h:99999/d?x#c",
    "folder",
    "#",
)
FACTORIES = ("Flat", "IVF16,Flat", "HNSW32", "PQ8", "IDMap,SQ8", "OPQ8,IVF4,PQ8", "RaBitQ", "IVF65536_HNSW32,Flat")


def attempt(random: Random, folder: Path) -> None:
    """Reads one text."""
    os.chdir(folder)
    try:
        random.choice(READERS)(random)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which the command line says in one line
            raise


def _read_model(random: Random) -> None:
    text = draw_model(random)
    spec = parse_model_spec(text)
    make_absolute(text)
    strip_weights(text)
    check_sources(None, [(text, None)])
    if spec.kind == "paper" or (spec.kind == "timm" and not spec.arguments.get("pretrained")):
        load_network(text, arguments={"num_classes": 3, "image_size": 32})


def draw_model(random: Random) -> str:
    """Returns a model spec, right or wrong."""
    arguments = "&".join(f"{random.choice(NAMES)}={_draw_argument(random)}" for _ in range(random.choice((0, 1, 1, 2))))
    text = f"{random.choice(MODELS)}?{arguments}" if arguments else random.choice(MODELS)
    return change_text(random, text).replace("true", "false") if random.random() < 0.6 else text


def _draw_argument(random: Random) -> str:
    values = ("8", "0", "-1", "false", "2001-99-99", "0b", "!!int ''", "!!python/name:os.system", "[", "*a", "{a: b}")
    return random.choice((random.choice(values), draw_text(random).replace("&", "")))


def _read_data(random: Random) -> None:
    text = random.choice(DATA)
    text = change_text(random, text) if random.random() < 0.8 else text
    if not text.startswith(("http", "s3", "github", "ftp")):  # nothing outside is reached
        locate_data(text)
        use_images(open_images(text, root=Path("none")))


def _read_place(random: Random) -> None:
    text = random.choice(PLACES)
    text = change_text(random, text) if random.random() < 0.8 else text
    locate_index(text)
    uri, _, name = text.rpartition("#")
    name_collection(uri, name)


def _read_factory(random: Random) -> None:
    text = random.choice(FACTORIES)
    check_factory(change_text(random, text) if random.random() < 0.8 else text, random.choice((8, 64)))


def _read_sizes(random: Random) -> None:
    for option, units in (("--max-memory", SIZES), ("--max-latency", TIMES_MS)):
        value = read_unit(option, draw_text(random) + random.choice(("", "GB", "ms", "kb", draw_text(random))), units)
        assert value >= 0
        int(value)


def _read_plan(random: Random) -> None:
    count = read_count(random.choice((draw_text(random), "1e8", "1e12", "1", "1_000", "12,3")))
    recall = random.choice((0.0, 0.5, 0.95, 1.0, 1e-300))
    dimension, cores = random.choice((1, 64, 65_536)), random.choice((1, 10**9, 10**30))
    memory = read_unit("--memory", random.choice(("64GB", "1", "0.5TB", draw_text(random))), SIZES)
    choose_code(count, dimension, recall)
    rates = Rates(*(random.choice((1e-9, 1.0, 1e9)) for _ in Rates.__dataclass_fields__))
    if memory:
        plan_gallery(count, dimension, recall, rates, cores, memory)


def _read_small(random: Random) -> None:
    text = random.choice((draw_text(random), change_text(random, "tensorboard"), change_text(random, "width:0.5")))
    readers: tuple[Callable[[], object], ...] = (
        lambda: parse_loggers([text]),
        lambda: parse_width(random.choice((text, f"width:{text}"))),
        lambda: parse_pairs([random.choice((text, f"{text}:{text}"))]),
        lambda: choose_device(random.choice((text, f"cuda:{text}", f"cpu:{text}"))),
        lambda: check_repository(random.choice((text, f"owner/{text}"))),
    )
    random.choice(readers)()


READERS = (_read_model, _read_model, _read_data, _read_place, _read_factory, _read_sizes, _read_plan, _read_small)
