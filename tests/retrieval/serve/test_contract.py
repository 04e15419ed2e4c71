"""The service keeps what its description promises, whatever it is sent."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig

from tests.retrieval.serving import Server

# A schema cannot say which texts are conditions, nor which bytes are images.
CONFIG = {
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2xx", 304, 400, 404, 422]},
        "negative_data_rejection": {"expected-statuses": [400, 403, 404, 405, 406, 413, 415, 422]},
    }
}
BRIEF = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described(server: Server, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=SchemathesisConfig.from_dict(CONFIG))
    operations = [found.ok() for found in schema.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:
        operations = [one for one in operations if one.body or one.query or one.path_parameters]
    assert len(operations) >= 4
    for operation in operations:

        @BRIEF
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Case) -> None:
            case.call_and_validate()

        call()
