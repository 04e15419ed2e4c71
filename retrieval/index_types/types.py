"""The index types of FAISS that an index may have, and what each can do.

A type is named by FAISS's factory string. What was run of each family, with faiss-cpu 1.15.1 and the inner product
(Flat, SQ8, IVF and HNSW with 1.12.0 too):

family                              add later   remove   search among some   memory-mapped by
IDMap over Flat, SQ*, RaBitQ        yes         yes      yes                 IO_FLAG_MMAP_IFC
IVF*, also after OPQ, PCA, RR       yes         yes      yes                 IO_FLAG_MMAP
IDMap over HNSW                     yes         no       yes                 IO_FLAG_MMAP_IFC
IDMap over any type with Refine     yes         no       no                  IO_FLAG_MMAP_IFC

All others are refused; above all IDMap straight over IVF, where FAISS's remove_ids gives every vector that stays
the id of another.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from indistill.errors import InputError, describe_error, escape_text

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
FaissIndex: TypeAlias = faiss.Index

# Of k-means. FAISS warns below 39; about 100 gave the same recall of 100,000 vectors in 1,024 lists, in three times the
# time.
POINTS_PER_LIST = 40
LEAST_SAMPLE = 2**16  # training vectors where they exist, for codes: 256 for each of the 256 centroids of PQ
NEIGHBOURS = range(2, 257)  # of a node of HNSW
EXACT = "IDMap,Flat"  # IDMap2 finds the vector of an id too, for 48 bytes of memory each: the segments do that
EXAMPLES = "Flat, SQfp16, SQ8, IVF1024,Flat, IVF1024,SQ8, OPQ32,IVF1024,PQ32 or HNSW32"
PARAMETERS = {"nprobe": "nprobe", "efSearch": "efSearch", "k_factor": "k_factor_rf"}  # ours: of faiss.ParameterSpace


def check_factory(text: str, dimension: int) -> str:
    """Returns the factory string of an index that holds ids: as it is for IVF, with IDMap before it for all others.

    Raises:
        InputError: FAISS does not know the string, or the type cannot hold ids, take vectors later, or keep ids right.
    """
    shown = escape_text(text)
    try:
        index = faiss.index_factory(dimension, text, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"'{shown}' is no index type of FAISS for vectors of {dimension} values: give one such as {EXAMPLES}"
        ) from error
    layers = _list_layers(index)
    leaf, refined = layers[-1], any(isinstance(layer, faiss.IndexRefine) for layer in layers)
    mapped = any(isinstance(layer, (faiss.IndexIDMap, faiss.IndexIDMap2)) for layer in layers)
    bare = ",".join(part for part in text.split(",") if part not in ("IDMap", "IDMap2"))
    if isinstance(leaf, faiss.IndexIVF):
        if mapped and not refined:
            raise InputError(
                f"'{shown}' loses track of its ids when images are removed (IDMap over IVF): give "
                f"'{escape_text(bare)}', which holds the ids itself"
            )
        quantizer = faiss.downcast_index(leaf.quantizer)
        if leaf.nlist < 1 or not isinstance(quantizer, (faiss.IndexFlat, faiss.IndexHNSW)):
            raise InputError(f"'{shown}' cannot be used: give IVF1024 or IVF65536_HNSW32 as the lists of '{shown}'")
        return f"IDMap,{bare}" if refined else text
    neighbours = re.fullmatch(r"(?:.*,)?HNSW(\d+).*", text)
    if neighbours and int(neighbours[1]) not in NEIGHBOURS:
        raise InputError(f"'{shown}' cannot be used: give 2 to 256 neighbours, as in HNSW32")
    if not isinstance(leaf, (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexRaBitQ, faiss.IndexHNSW)):
        raise InputError(
            f"'{shown}' cannot be added to, removed from or searched with a filter ({type(leaf).__name__}): "
            f"give one such as {EXAMPLES}"
        )
    return f"IDMap,{bare}"


def can_remove(factory: str) -> bool:
    """Returns whether vectors can be removed from an index of this type."""
    return can_filter(factory) and not any(part.startswith("HNSW") for part in factory.split(","))


def can_filter(factory: str) -> bool:
    """Returns whether an index of this type can be searched among some of its ids."""
    return not any(part == "RFlat" or part.startswith("Refine") for part in factory.split(","))


def warn_of_factory(factory: str) -> str | None:
    """Returns what a user must know who asks for this type, or None."""
    if can_remove(factory):
        return None
    filters = "" if can_filter(factory) else ", nor can it be searched with a filter"
    return (
        f"images cannot be removed from an index of type {factory}{filters}: removing and changed images need "
        "the whole index to be written again. IVF types can do both"
    )


def make_faiss(
    factory: str, vectors: Vectors, ids: Ids, seed: int = 0, *, centroids: FaissIndex | None = None
) -> FaissIndex:
    """Returns an index of the vectors, for the inner product. The same input gives the same index, to the byte.

    Args:
        factory: FAISS's name; what `check_factory` returns for it is made.
        vectors: (N, D), unit rows.
        ids: (N,), each once.
        seed: of the drawing of the training vectors.
        centroids: the quantizer of another IVF index with as many lists, which then is not trained again. It must live
            as long as the index.

    Raises:
        InputError: there are too few vectors for the type, or it does not fit them, or is none of ours.
    """
    index = train_faiss(factory, vectors, seed, centroids=centroids)
    with _refuse_misfit(factory, vectors):
        add_to_faiss(index, vectors, ids)
    return index


def train_faiss(factory: str, vectors: Vectors, seed: int = 0, *, centroids: FaissIndex | None = None) -> FaissIndex:
    """Returns an index without vectors, trained on some of these; see `make_faiss`."""
    factory = check_factory(factory, vectors.shape[1])
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    ivf = find_ivf(index)
    if ivf is not None:
        if len(vectors) < ivf.nlist:
            raise InputError(
                f"{factory} has {ivf.nlist} lists, and there are {len(vectors)} vectors: give fewer lists, or Flat"
            )
        ivf.cp.max_points_per_centroid, ivf.cp.min_points_per_centroid = POINTS_PER_LIST, 1
        if centroids is not None:
            ivf.quantizer, ivf.own_fields = centroids, False
    with _refuse_misfit(factory, vectors):
        if not index.is_trained:
            index.train(_draw_rows(vectors, max(LEAST_SAMPLE, POINTS_PER_LIST * (ivf.nlist if ivf else 0)), seed))
    return index  # type: ignore[no-any-return]


@contextmanager
def _refuse_misfit(factory: str, vectors: Vectors) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"{factory} cannot index {len(vectors)} vectors of {vectors.shape[1]} values ({describe_error(error)}): "
            "give another type, or Flat"
        ) from error


def add_to_faiss(index: FaissIndex, vectors: Vectors, ids: Ids) -> None:
    """Adds vectors (N, D) by ids (N,), which must be new: FAISS takes an id twice without a word."""
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))


def remove_from_faiss(index: FaissIndex, ids: Ids) -> int:
    """Removes the vectors of these ids and returns how many there were.

    Raises:
        InputError: the type of the index cannot.
    """
    try:
        return int(_untyped(index).remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(ids, np.int64))))
    except RuntimeError as error:
        raise InputError(
            "images cannot be removed from an index of this type: build it again, with an IVF type"
        ) from error


def set_parameters(index: FaissIndex, parameters: Mapping[str, int]) -> None:
    """Sets how an index searches; the values are written with it.

    Args:
        index: of any type, also behind IDMap, OPQ and the like.
        parameters: `nprobe` of IVF, `efSearch` of HNSW, `k_factor` of Refine; each at least 1.

    Raises:
        InputError: the index has no such parameter.
    """
    for name, value in parameters.items():
        if name not in PARAMETERS or value < 1:
            raise InputError(f"{name}={value} is no search parameter: give nprobe, efSearch or k_factor, from 1")
        try:
            faiss.ParameterSpace().set_index_parameter(index, PARAMETERS[name], value)
        except RuntimeError as error:
            raise InputError(
                f"an index of this type has no {name}: nprobe is of IVF, efSearch of HNSW, k_factor of Refine"
            ) from error


def read_faiss(path: Path, *, mapped: bool = False) -> FaissIndex:
    """Returns the index of a file.

    Args:
        path: the file.
        mapped: leave vectors on the disk until they are searched. Such an index is for reading only: to change it ends
            the process, inside FAISS. Which flag maps depends on the type; the other one copies all, without a word.

    Raises:
        RuntimeError: there is no such file, it is no index, or it was cut short. FAISS 1.12 does not see a mapped file
            of IVF that was, and searching it can end the process.
    """
    if not mapped:
        return faiss.read_index(str(path))  # type: ignore[no-any-return]
    with_map = path.is_file() and _read_start(path) == b"IxM"  # IDMap and IDMap2
    return faiss.read_index(  # type: ignore[no-any-return]
        str(path), faiss.IO_FLAG_MMAP_IFC if with_map else faiss.IO_FLAG_MMAP
    )


def search_faiss(index: FaissIndex, queries: Vectors, k: int, among: Ids | None = None) -> tuple[Vectors, Ids]:
    """Returns the scores (Q, k) and ids (Q, k) of the nearest, the best first; equal scores as FAISS orders them.

    Where there are fewer than k, id -1 and score -inf fill the row.

    Args:
        index: of any type.
        queries: (Q, D), unit rows.
        k: at least 1.
        among: search only these ids. k of them are found wherever they exist: rows that an approximate search leaves
            short are searched again, through all lists of IVF or all of the graph.

    Raises:
        InputError: `among` with a type that cannot.
    """
    queries, untyped = np.ascontiguousarray(queries, np.float32), _untyped(index)
    if among is None:
        scores, ids = untyped.search(queries, k)
    else:
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(among, np.int64))
        scores, ids = untyped.search(queries, k, params=_select(index, selector, wide=False))
        short = np.flatnonzero((ids >= 0).sum(axis=1) < min(k, len(among), index.ntotal))
        if len(short):
            scores[short], ids[short] = untyped.search(queries[short], k, params=_select(index, selector, wide=True))
    scores[ids < 0] = -np.inf
    return scores, ids


def list_ids(index: FaissIndex) -> Ids:
    """Returns the ids (N,) that an index holds, in no particular order."""
    ivf = find_ivf(index)
    if ivf is None or isinstance(index, faiss.IndexIDMap):
        return faiss.vector_to_array(_untyped(index).id_map)  # type: ignore[no-any-return]
    lists = [(ivf.invlists.list_size(i), ivf.invlists.get_ids(i)) for i in range(ivf.nlist)]
    held = [faiss.rev_swig_ptr(pointer, size).copy() for size, pointer in lists if size]
    return np.concatenate([np.empty(0, np.int64), *held])


def find_ivf(index: FaissIndex) -> Any:  # noqa: ANN401
    """Returns the IVF part of an index, behind IDMap, OPQ or Refine, or None."""
    return faiss.try_extract_index_ivf(index)


def _select(index: FaissIndex, selector: object, *, wide: bool) -> object:
    """Parameters given to a search replace those of the index: they must repeat them."""
    layers = _list_layers(index)
    if any(isinstance(layer, faiss.IndexRefine) for layer in layers):
        raise InputError("an index with Refine cannot be searched with a filter: build it again, with an IVF type")
    leaf = layers[-1]
    if isinstance(leaf, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=leaf.nlist if wide else leaf.nprobe)
    if isinstance(leaf, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=leaf.ntotal if wide else leaf.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def _list_layers(index: FaissIndex) -> list[Any]:
    """From the outermost to what holds the codes."""
    layers = [faiss.downcast_index(index)]
    while True:
        layer = layers[-1]
        if isinstance(layer, (faiss.IndexIDMap, faiss.IndexIDMap2, faiss.IndexPreTransform)):
            layers.append(faiss.downcast_index(layer.index))
        elif isinstance(layer, faiss.IndexRefine):
            layers.append(faiss.downcast_index(layer.base_index))
        else:
            return layers


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(3)


def _draw_rows(vectors: Vectors, count: int, seed: int) -> Vectors:
    if len(vectors) > count:
        vectors = vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))]
    return np.ascontiguousarray(vectors, np.float32)


def _untyped(index: FaissIndex) -> Any:  # noqa: ANN401
    return index
