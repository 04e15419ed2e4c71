"""x"""


def evaluate() -> None:
    """X."""
