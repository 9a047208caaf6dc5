"""The contract again, with a replica on a real cluster of Ray behind the door.

`make test-ray` runs these, in an environment that has Ray.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("ray")

from deploy import ray_serve
from deploy.clustered import Deployed
from metastable.bundle import Bundle
from metastable.serving.metrics import Metrics
from tests import launched
from tests.serving.door import test_contract as contract
from tests.serving.door import test_inference as inference
from tests.serving.door.conftest import png
from tests.serving.door.running import Running, before

pytestmark = [pytest.mark.server, pytest.mark.timeout(2 * launched.PATIENCE)]

# What looks into the engine of this process is left out; tests/deploy/test_clustered_ray.py has its like.
test_every_form = contract.test_every_form_of_a_request_has_the_same_answer
test_several_images = contract.test_several_images_have_an_outcome_each
test_one_in_the_plural = contract.test_one_in_the_plural_is_a_list
test_what_is_wrong = contract.test_what_is_wrong_is_said
test_a_body_of_unknown_length = contract.test_a_body_of_unknown_length_is_bounded_too
test_other_methods = contract.test_other_methods_are_told_which_is_right
test_options = contract.test_options_says_what_a_path_takes
test_head = contract.test_head_is_get_without_a_body
test_other_paths = contract.test_other_paths_are_not_there
test_alike = contract.test_requests_that_are_named_alike_are_two
test_twice = contract.test_a_header_that_is_there_twice_is_refused
test_exact_pixels = contract.test_exact_pixels_come_as_they_are
test_openapi = contract.test_openapi_names_every_path

client = inference.client
test_triton = inference.test_a_client_of_triton_finds_its_way
test_tensors_and_files = inference.test_tensors_and_files_have_the_answers_of_classify
test_outputs = inference.test_outputs_that_are_asked_for
test_one_at_fault = inference.test_one_image_at_fault_is_told_of_all
test_what_is_wrong_with_it = inference.test_what_is_wrong_is_said_as_the_protocol_says_it


@pytest.fixture(scope="module")
def served(tiny: Bundle, tiny_folder: Path) -> Iterator[Running]:
    plan = ray_serve.Plan(str(tiny_folder), tiny.digest, "torch", allow_seed=True)
    metrics = Metrics(CollectorRegistry(), settings=tiny.settings.names)
    life = Deployed(plan, tiny, metrics)
    with before(life.backend, metrics=metrics, around=life) as found:
        ends = time.monotonic() + launched.PATIENCE
        while httpx.get(found.url + "/readyz", trust_env=False).status_code != 200:
            assert time.monotonic() < ends
            time.sleep(0.1)
        yield found


def test_a_deadline_is_kept_across_it(served: Running) -> None:
    answer = contract.post(served, content=png(), headers={"X-Metastable-Deadline-Ms": "1"})
    contract.refused(answer, 504, "deadline_exceeded")


def test_a_client_that_leaves_is_let_go(served: Running) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(served.url + "/classify", content=png(), timeout=0.002, trust_env=False)
    ends = time.monotonic() + launched.PATIENCE
    while served.backend._under_way or served.backend.backlog:
        assert time.monotonic() < ends
        time.sleep(0.05)
    contract.same(contract.post(served, content=png(), headers=contract.FIXED))
