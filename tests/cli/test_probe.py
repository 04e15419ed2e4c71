import time, sys
from tests.cli.conftest import *
def test_probe(workspace):
    pass
