"""Datasets as lm-eval's tasks: the field's four with what they need to run offline, and every other by its name.

gsm8k is lm-eval's own task. HumanEval and MBPP are posed as lm-eval poses them and scored in our sandbox, as
lm-eval's scorer is a script from a hub. MATH-500 is posed as lm-eval's ``minerva_math500``; see ``grading``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from datasets.exceptions import DatasetsError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex

from fastdllm.errors import OptionError
from fastdllm.evals import grading
from fastdllm.evals.code import humaneval_program, mbpp_program
from fastdllm.evals.sandbox import Isolation, find_isolation

VERSION = 1.0  # of the tasks here; to change when a prompt or a score does
SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset that we know the files of.

    Args:
        hub: dataset id and configuration on the hub.
        folder: where local files lie under ``dataset.path``, unless they lie in it directly.
        files: split to file.
        task: the task's own configuration; None for lm-eval's of the same name.
        instruct: what differs for models with a chat template.
    """

    hub: tuple[str, str | None]
    folder: str
    files: Mapping[str, str]
    task: Callable[[Isolation | None], dict[str, Any]] | None = None
    instruct: Callable[[Isolation | None], dict[str, Any]] | None = None
    runs_code: bool = False


def humaneval(isolation: Isolation | None) -> dict[str, Any]:
    return {
        "task": "humaneval", "output_type": "generate_until", "test_split": "test", "num_fewshot": 0,
        "doc_to_text": "{{prompt}}", "doc_to_target": "{{canonical_solution}}",
        "generation_kwargs": {"until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "do_sample": False},
        **grading.code_task(humaneval_program, isolation),
    }  # fmt: skip


def humaneval_instruct(isolation: Isolation | None) -> dict[str, Any]:
    return {
        **humaneval(isolation),
        "task": "humaneval_instruct",
        "doc_to_text": "Write a solution to the following problem and make sure that it passes the tests:\n"
        "```python\n{{ prompt }}\n```\n",
        "gen_prefix": "Here is the completed function:\n```python\n{{ prompt }}\n",
        **grading.code_task(grading.humaneval_instruct_program, isolation),
    }


def mbpp(isolation: Isolation | None) -> dict[str, Any]:
    return {
        "task": "mbpp", "output_type": "generate_until", "test_split": "test", "num_fewshot": 3,
        "doc_to_text": "You are an expert Python programmer, and here is your task: {{text}} Your code should pass "
        "these tests:\n\n{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}\n[BEGIN]\n",
        "doc_to_target": "{{code}}\n[DONE]", "target_delimiter": "",
        "generation_kwargs": {"until": ["[DONE]"], "do_sample": False},
        "fewshot_split": "prompt", "fewshot_config": {"sampler": "first_n"}, "dataset_path": None,
        **grading.code_task(mbpp_program, isolation),
    }  # fmt: skip


def mbpp_instruct(isolation: Isolation | None) -> dict[str, Any]:
    return {
        **mbpp(isolation),
        "task": "mbpp_instruct",
        "doc_to_text": "You are an expert Python programmer, and here is your task:\n{{text}}\nYour code should pass "
        "these tests:\n{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}",
        "doc_to_target": "{{code}}\n```",
        "gen_prefix": "\n```python\n",
        "generation_kwargs": {"until": [], "do_sample": False},
        **grading.code_task(grading.mbpp_instruct_program, isolation),
    }


def math_500(_: Isolation | None) -> dict[str, Any]:
    return {
        "task": "math-500", "output_type": "generate_until", "test_split": "test", "num_fewshot": 4,
        "doc_to_text": "Problem:\n{{problem}}\n\nSolution:", "doc_to_target": "{{solution}}",
        "generation_kwargs": {"until": ["Problem:"], "do_sample": False},
        "fewshot_config": {"sampler": "first_n", "samples": grading.minerva_examples},
        **grading.math_task(),
    }  # fmt: skip


SOURCES: dict[str, Source] = {
    "gsm8k": Source(
        hub=("openai/gsm8k", "main"), folder="gsm8k", files={"train": "train.jsonl", "test": "test.jsonl"}
    ),
    "math-500": Source(
        hub=("HuggingFaceH4/MATH-500", None), folder="math500", files={"test": "math500.jsonl"}, task=math_500
    ),
    "humaneval": Source(
        hub=("openai/openai_humaneval", None), folder="humaneval", files={"test": "HumanEval.jsonl"}, task=humaneval,
        instruct=humaneval_instruct, runs_code=True,
    ),
    "mbpp": Source(
        hub=("google-research-datasets/mbpp", "full"), folder="mbpp", files={"test": "mbpp.jsonl"}, task=mbpp,
        instruct=mbpp_instruct, runs_code=True,
    ),
}  # fmt: skip


def load_tasks(name: str, *, path: str | None, chat: bool, unsafe: bool) -> dict[str, Any]:
    """lm-eval's tasks of a dataset, one or those of a group such as ``mmlu``, as ``TaskManager.load`` gives them.

    Args:
        name: one of :data:`SOURCES`, or a task, group or tag of lm-eval.
        path: folder with the files; None for the hub.
        chat: prompts go through a chat template: code problems are then posed to an instruct model.
        unsafe: as in :func:`find_isolation`; asked only for datasets that run code.

    Raises:
        OptionError: there is no such dataset, its files are missing, or no sandbox can be had.
    """
    found = _load(name, path=path, chat=chat, unsafe=unsafe)
    outside = [task for task, built in found["tasks"].items() if getattr(built, "UNSAFE_CODE", False)]
    if outside and not unsafe:
        raise OptionError(
            f"{outside[0]} of lm-eval runs what the model wrote outside the sandbox; say --unsafe to do so."
        )
    return found


def _load(name: str, *, path: str | None, chat: bool, unsafe: bool) -> dict[str, Any]:
    source = SOURCES.get(name)
    try:
        with redirect_stdout(StringIO()):  # lm-eval and datasets print what they load
            if source is None or source.task is None:
                return _stock(name, None if path is None else Path(path), source)
            isolation = find_isolation(unsafe=unsafe) if source.runs_code else None
            make = source.instruct if chat and source.instruct else source.task
            config = {**make(isolation), **_data(name, source, path), "metadata": {"version": VERSION}}
            return {"tasks": {config["task"]: ConfigurableTask(config=config)}, "groups": {}, "group_map": {}}
    except OptionError:
        raise
    except KeyError as error:
        lacks = f"{error.args[0]}.jsonl" if error.args[0] in SPLITS else f"rows with {error.args[0]!r}"
        raise OptionError(f"the files of {name} have no {lacks}, which it needs.") from None
    except (OSError, ValueError, AssertionError, StopIteration, RuntimeError, DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionError(
            f"dataset.name={name} cannot be had ({reason}); give dataset.path=FOLDER with its files."
        ) from None


def _stock(name: str, folder: Path | None, source: Source | None) -> dict[str, Any]:
    """lm-eval's own task, from local files where a folder is given."""
    stock = _yaml_of(name)
    manager = TaskManager(include_defaults=stock is None)  # reading all of lm-eval's tasks takes seconds
    if stock is None and name not in manager.task_index:
        raise OptionError(f"dataset.name={name} is none of {', '.join(SOURCES)}, and lm-eval has no such task.")
    if folder is None:
        return dict(manager.load([name if stock is None else str(stock)]))
    stock = stock or (manager.task_index[name].yaml_path if name in manager.all_subtasks else None)
    if stock is None:
        raise OptionError(f"dataset.path works with single tasks, and {name} is a group or is written in Python.")
    files = _files(name, folder, source)
    content: dict[str, Any] = {"include": str(stock), "task": name, "dataset_path": "json", "dataset_name": None}
    content |= {key: None for split, key in SPLITS.items() if split not in files and key != "test_split"}
    with tempfile.TemporaryDirectory(prefix="fastdllm-task-") as home:
        written = Path(home) / "task.yaml"
        written.write_text(yaml.safe_dump({**content, "dataset_kwargs": {"data_files": files}}), encoding="utf-8")
        return dict(manager.load([str(written)]))


def _yaml_of(name: str) -> Path | None:
    """The file of a task of lm-eval that is named like it; there are others, which only the index of all knows."""
    named = [path for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml") if path.stem == name]
    entries = [entry for path in named if (entry := TaskIndex.entry_from_path(path))]
    found = [entry.yaml_path for entry in entries if entry.name == name and entry.kind is Kind.TASK]
    return found[0] if len(found) == 1 else None


def _data(name: str, source: Source, path: str | None) -> dict[str, Any]:
    """Where a task of ours gets its rows from."""
    files = None if path is None else _files(name, Path(path), source)
    hub, configuration = source.hub
    if name == "mbpp":
        return {"custom_dataset": partial(mbpp_splits, None if files is None else files["test"])}
    if files is None:
        return {"dataset_path": hub, "dataset_name": configuration}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def mbpp_splits(file: str | None, **_: object) -> dict[str, Any]:
    """MBPP's test set, tasks 11 to 510, and the three that its authors put into the prompt (arXiv 2108.07732)."""
    import datasets

    hub, configuration = SOURCES["mbpp"].hub
    given = datasets.load_dataset("json", data_files=file) if file else datasets.load_dataset(hub, configuration)
    rows = datasets.concatenate_datasets(list(given.values()))
    spans = {"prompt": range(2, 5), "test": range(11, 511)}
    return {split: rows.filter(lambda row, span=span: row["task_id"] in span) for split, span in spans.items()}


def _files(name: str, folder: Path, source: Source | None) -> dict[str, str]:
    """The files of each split in a folder, or in the dataset's own folder within it."""
    if source is None:
        found = {split: folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").is_file()}
        if not found:
            raise OptionError(f"dataset.path={folder} has none of {', '.join(f'{s}.jsonl' for s in SPLITS)} of {name}.")
        return {split: str(path.resolve()) for split, path in found.items()}
    home = folder / source.folder if (folder / source.folder).is_dir() else folder
    for file in source.files.values():
        if not (home / file).is_file():
            raise OptionError(f"dataset.path={folder} has no {file} of {name}.")
    return {split: str((home / file).resolve()) for split, file in source.files.items()}
