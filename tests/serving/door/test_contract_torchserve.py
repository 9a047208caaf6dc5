"""The contract again, with a real TorchServe behind the door."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from deploy import java
from deploy.run_folder import RunFolder
from deploy.torchserve import Supervised
from export import mar
from metastable.bundle import Bundle
from metastable.serving.metrics import Metrics
from tests import launched
from tests.launched import REPOSITORY, free_port
from tests.serving.door import test_contract as contract
from tests.serving.door import test_inference as inference
from tests.serving.door.conftest import png
from tests.serving.door.running import Running, before

pytestmark = [pytest.mark.server, pytest.mark.timeout(2 * launched.PATIENCE)]

# What looks into the engine of this process is left out; tests of `Supervised` have its like.
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
def served(tiny: Bundle, tiny_folder: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("contract")
    config, archive = folder / "model-config.yaml", folder / "metastable.mar"
    text = (REPOSITORY / "model-config.yaml").read_text()
    assert "allow_seed: false" in text
    config.write_text(
        text.replace("allow_seed: false", "allow_seed: true").replace("runner: auto", "runner: torch")
    )
    mar.build(tiny_folder, config, archive)  # type: ignore[arg-type]
    run = RunFolder(folder / "run")
    one = Supervised(run, archive, java.find(print).home, torchserve_metrics_port=free_port())
    metrics = Metrics(settings=tiny.settings.names)
    with before(one.backend, metrics=metrics, around=one) as found:
        ends = time.monotonic() + launched.PATIENCE
        while httpx.get(found.url + "/readyz", trust_env=False).status_code != 200:
            assert time.monotonic() < ends, run.log_tail()
            time.sleep(0.1)
        yield found
    assert one.left == []
    run.close()


def test_a_deadline_is_kept_across_it(served: Running) -> None:
    answer = contract.post(served, content=png(), headers={"X-Metastable-Deadline-Ms": "1"})
    contract.refused(answer, 504, "deadline_exceeded")


def test_a_client_that_leaves_is_let_go(served: Running) -> None:
    [worker] = served.backend._workers.values()
    with pytest.raises(httpx.TimeoutException):
        httpx.post(served.url + "/classify", content=png(), timeout=0.002, trust_env=False)
    ends = time.monotonic() + launched.PATIENCE
    while served.backend._under_way or worker.state["out"]:
        assert time.monotonic() < ends
        time.sleep(0.05)
    contract.same(contract.post(served, content=png(), headers=contract.FIXED))
