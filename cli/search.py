"""x"""


def search() -> None:
    """X."""
