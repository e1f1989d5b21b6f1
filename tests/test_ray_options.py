"""What is said before Ray starts: which options go together, what a file of them may hold, and what is missing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fastdllm.cluster.workers import Checkpoint, Workers, cluster
from fastdllm.errors import OptionError
from helpers import refused, run
from test_serve_command import announced  # noqa: F401

FREE = ("--port", "0")


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (("serve", "--replicas", "0"), "replicas=0 must be 1 or more"),
        (("serve", "--replica-cpus", "2"), "--replica-cpus goes with --replicas."),
        (("serve", "--replica-gpus", "0.5"), "--replica-gpus goes with --replicas."),
        (("serve", "--replicas", "2", "--replica-gpus", "2"), "replica_gpus=2.0 must lie between 0 and 1"),
        (("serve", "--replicas", "2", "--replica-cpus", "0"), "replica_cpus=0.0 must be above 0"),
        (("serve", *FREE, "--replicas", "2", "--device", "cuda:1"), "'cuda:1' is one GPU for all replicas"),
        (("serve", *FREE, "--replicas", "2", "--device", "cpu", "--replica-gpus", "1"), "contradicts device=cpu"),
        (("serve", *FREE, "--replicas", "2", "--device", "cuda", "--replica-gpus", "0"), "needs replica_gpus above 0"),
        (("serve", *FREE, "--replicas", "2", "--threads", "0"), "threads=0 must be 1 or more"),
        (("serve", *FREE, "--replicas", "2", "no/such/model"), "no/such/model"),
        (("generate", "x", "--replicas", "2"), "--replicas goes with --ray."),
        (("generate", "x", "--ray-address", "auto"), "--ray-address goes with --ray."),
        (("generate", "x", "--ray"), "--ray is for many prompts"),
        (("generate", "--jsonl", "--ray", "--tensor-parallel", "2"), "--tensor-parallel cannot be given with it"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(options, phrase):
    assert phrase in refused(*options, stdin='"x"\n')


@pytest.mark.parametrize("command", [("serve", *FREE, "--replicas", "2"), ("generate", "--jsonl", "--ray")])
def test_torchrun_does_not_start_what_starts_its_own_processes(monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "leave torchrun out" in refused(*command, stdin='"x"\n')


@pytest.mark.parametrize("command", [("serve", *FREE, "--replicas", "2"), ("generate", "--jsonl", "--ray")])
def test_without_ray_it_says_what_to_install(monkeypatch, command):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "ray is missing: pip install 'fastdllm[ray]'." in refused(*command, stdin='"x"\n')


def test_workers_load_what_was_asked_for_on_what_they_have(model, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(model).parent)
    asked = Checkpoint(model=Path(model).name, name=Path(model).name)
    found = asked.for_workers(Workers(cpus=2.5, gpus=0.0))
    assert (found.model, found.name) == (str(Path(model)), Path(model).name)
    assert (found.device, found.threads) == ("cpu", 2)
    assert asked.for_workers(Workers(gpus=0.5)).device == "cuda"
    assert asked.for_workers(Workers()).device == "auto"
    assert Checkpoint(model="tiny", name="tiny", threads=3).for_workers(Workers(gpus=0.0)).threads == 3
    assert Checkpoint(model="a/b", name="a/b").for_workers(Workers()).model == "a/b"
    engine = found.load()
    assert engine.name == Path(model).name


def write(folder: Path, name: str, content: object) -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def test_options_come_from_a_file(tmp_path, announced):  # noqa: F811
    file = write(tmp_path, "serve.json", {
        "max-batch": 3, "queue_size": 5, "max-tokens": 64, "alias": ["small", "little"], "no-playground": True,
        "kv-memory": "1G", "threads": None, "model": "tiny",
    })  # fmt: skip
    _, service = announced("--config", file, "--queue-size", "7")
    settings = service.settings
    assert (settings.limits.max_batch, settings.limits.kv_bytes) == (3, 2**30)
    assert settings.limits.queue_size == 7, "the command line wins"
    assert settings.options["gen_length"] == 64
    assert (settings.aliases, settings.playground) == (("small", "little"), False)


def test_yaml_says_the_same(tmp_path, announced):  # noqa: F811
    pytest.importorskip("yaml")
    text = "# our server\nmax-batch: 3\nalias:\n  - small\ntimeout: 9\n"
    _, service = announced("--config", write(tmp_path, "serve.yaml", text))
    settings = service.settings
    assert (settings.limits.max_batch, settings.aliases, settings.timeout) == (3, ("small",), 9.0)
    assert announced("--config", write(tmp_path, "empty.yml", "# nothing\n"))[1].settings.limits.max_batch == 16


def test_what_a_file_gives_wins_over_a_preset(tmp_path, announced):  # noqa: F811
    preset = write(tmp_path, "mine.json", {"fastdllm_preset": 1, "options": {"cache": "prefix", "block_length": 16}})
    file = write(tmp_path, "serve.json", {"preset": preset, "block-length": 4})
    options = announced("--config", file)[1].settings.options
    assert (options["cache"], options["block_length"]) == ("prefix", 4)


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.json", {"max-bach": 3}, "'max-bach' is no option; there are model, host, port"),
        ("a.json", {"config": "b.json"}, "'config' is no option"),
        ("a.json", {"max-batch": 3, "max_batch": 4}, "gives 'max_batch' twice"),
        ("a.json", {"max-batch": {"is": 3}}, "'max-batch' must be a text, a number"),
        ("a.json", [1], "must hold options by name"),
        ("a.json", "{", "is not JSON"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.toml", "a = 1", "must be named .json, .yaml or .yml"),
        ("a.json", {"replicas": 0}, "replicas=0 must be 1 or more"),
    ],
)
def test_a_file_that_cannot_be_is_one_sentence(tmp_path, name, content, phrase):
    assert phrase in refused("serve", "--config", write(tmp_path, name, content))


def test_a_value_of_a_wrong_kind_names_the_option(tmp_path):
    result = run("serve", "--config", write(tmp_path, "a.json", {"max-batch": "many"}))
    assert result.exit_code == 2
    assert "--max-batch" in result.stderr


def test_a_missing_file_is_one_sentence():
    assert "no.json: No such file" in refused("serve", "--config", "no.json")


@pytest.mark.parametrize(
    ("address", "phrase"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at '127.0.0.1:9' (Connection refused)"),
        ("nowhere", "no Ray cluster answers at 'nowhere'"),
        ("ray://head:10001", "is a client's; give HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(address, phrase):
    with pytest.raises(OptionError, match=re.escape(phrase)), cluster(Workers(address=address)):
        pass


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_a_gpu_lies_between_none_and_one(share):
    with pytest.raises(OptionError, match="replica_gpus"):
        Workers(gpus=share)
