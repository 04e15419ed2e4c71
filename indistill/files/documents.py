"""YAML and JSON that anyone may have written. Needs no torch.

PyYAML's safe loader runs no code, but lets a page of aliases stand for more than the memory holds, takes the last of
two equal keys, and raises errors of any type for values that it cannot make.
"""

import json
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from indistill.errors import describe_error

MAX_CHARACTERS = 2**20  # of YAML, which takes about ten seconds; a recipe has 1,000
MAX_VALUES = 100_000  # of YAML, each counted where an alias stands for it too
MAX_INTEGER_BITS = 64
TOO_DEEP = "it is nested too deep"


class DocumentLoader(yaml.SafeLoader):
    """YAML as the safe loader reads it, but no whole numbers that cannot be printed."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Returns the number. Raises ValueError where it cannot be printed."""
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > MAX_INTEGER_BITS:
            raise ValueError(f"line {node.start_mark.line + 1}: a whole number of more than {MAX_INTEGER_BITS} bits")
        return number


DocumentLoader.add_constructor("tag:yaml.org,2002:int", DocumentLoader.construct_yaml_int)


def read_yaml(text: str, loader: type[DocumentLoader] = DocumentLoader) -> Any:  # noqa: ANN401 - any document's
    """Returns the value of a YAML document: dicts, lists, texts, numbers, dates.

    Raises:
        ValueError: it is none, or grows, holds itself, or has a key twice; the message is one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read")
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _count_values(node, {}, set())
        return reader.construct_document(node)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # of a value such as 0b or !!bool x
        raise ValueError(f"a value cannot be read ({describe_error(error)})") from error


def read_json(text: str | bytes) -> Any:  # noqa: ANN401 - any document's
    """Returns the value of a JSON document. Raises ValueError where it is none, or is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def _count_values(node: Node, known: dict[Node, int], open_nodes: set[Node]) -> int:
    """Returns how many values a node holds, itself included, and looks for what YAML lets pass."""
    if node in open_nodes:
        raise ValueError(f"line {node.start_mark.line + 1}: a value holds itself")
    if node in known:
        return known[node]
    open_nodes.add(node)
    parts = [] if isinstance(node, ScalarNode) else node.value
    if isinstance(node, MappingNode):
        keys = [(key.tag, key.value) for key, _ in parts if isinstance(key, ScalarNode)]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"line {node.start_mark.line + 1}: the key '{twice[1]}' stands there twice")
        parts = [part for pair in parts for part in pair]
    count = 1 + sum(_count_values(part, known, open_nodes) for part in parts)
    if count > MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
    open_nodes.remove(node)
    known[node] = count
    return count
