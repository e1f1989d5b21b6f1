"""Requests made from the server's own document, right ones and wrong ones: none is a failure of the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

import fastdllm
from fastdllm.serve.jobs import Limits
from fastdllm.serve.schema import NAME_LENGTH
from serving import serving

EXAMPLES = 20


@pytest.fixture(scope="module")
def served(model):
    limits = Limits(max_batch=4, max_model_len=64)
    options = {"gen_length": 8, "decoder": "topk:k=4"}
    with serving(fastdllm.load(model), name="toy", limits=limits, options=options, max_choices=4) as server:
        yield server
        assert server.stats().free_slots == 4
        assert server.stats().healthy


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_request_makes_the_server_fail(served, path, mode):
    """Of the answers schemathesis checks status, type and shape against the document."""
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path]["POST"]
    statuses = set()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        model = case.body.get("model") if isinstance(case.body, dict) else None
        if isinstance(model, str) and len(model) <= NAME_LENGTH:
            case.body["model"] = "toy"  # else every request would end at its model
        # What the types allow may still not fit the model, or contradict itself, and be refused.
        statuses.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    ask()
    assert statuses <= {200, 400}
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE)
