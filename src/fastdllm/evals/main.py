"""``eval.py``: a model on a benchmark, from Hydra overrides to a result on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from fastdllm.caches import CACHES
from fastdllm.config import describe
from fastdllm.decoders import DECODERS
from fastdllm.errors import FastdllmError, OptionError, out_of_memory
from fastdllm.evals import groups
from fastdllm.evals.settings import Settings, read_settings
from fastdllm.files import write_whole

USAGE = """eval.py: a masked diffusion model on a benchmark.

  accelerate launch eval.py model=llada-inst dataset.name=gsm8k cache=prefix generation.threshold=0.9

--unsafe (or unsafe=true) runs what the model wrote without a sandbox where none can be had.

"""
KINDS = ("generate", "loglikelihood", "loglikelihood_rolling")
LIBRARIES = ("lm-eval", "datasets", "accelerate", "hydra-core", "math-verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an evaluation; the exit code: 0 done, 2 an error that is one sentence on stderr, 130 interrupted."""
    given = ["unsafe=true" if a == "--unsafe" else a for a in (sys.argv[1:] if arguments is None else arguments)]
    if {"-h", "--help"} & set(given):
        print(USAGE + usage())
        return 0
    try:
        evaluate(read_settings(given))
    except KeyboardInterrupt:
        print("interrupted: what is done is kept; run the same command again to continue", file=sys.stderr)
        return 130
    except FastdllmError as error:
        print(f"error: {str(error).replace('another --out', 'another out=FOLDER')}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}." if error.filename else f"error: {error}.", file=sys.stderr)
        return 2
    except UndefinedError as error:
        print(f"error: a row of the dataset lacks what its task asks of it ({error}).", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print("error: there is not enough memory for the model; give another dtype=.", file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    """Every group and option with its default."""
    options = "  ".join(f"{name}={_shown(value)}" for name, value in groups.TOP.items())
    lines = [f"options: {options}", "", f"dataset: {_options(groups.DATASET)}", ""]
    lines += [f"model={name}: {_options(model)}" for name, model in groups.MODELS.items()]
    lines += ["", *(f"cache={name}: {_options(groups.defaults_of(kind))}" for name, kind in CACHES.items())]
    lines += ["  cache=prefix has use_dual=false, too", ""]
    for name, decoder in groups.GENERATIONS.items():
        own = groups.VANILLA if decoder is None else groups.defaults_of(DECODERS[decoder])
        lines.append(f"generation={name}: {_options(own)}")
    return "\n".join([*lines, f"every generation: {_options(groups.SHARED)}"])


def _options(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={_shown(value)}" for name, value in values.items()) or "no options"


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def evaluate(settings: Settings) -> dict[str, Any] | None:
    """Answer and score what the folder lacks, and write the result; None but on the first process.

    Raises:
        OptionError: something is refused, before the first answer.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import torch

    from fastdllm.evals.datasets import load_tasks
    from fastdllm.evals.lm import FastDLLM
    from fastdllm.evals.workers import find_workers

    datasets.disable_progress_bars()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    workers = find_workers()
    folder = settings.out or Path("results") / folder_name(settings)
    folder.mkdir(parents=True, exist_ok=True)
    model = FastDLLM(
        settings.model["path"], batch_size=settings.batch_size, dtype=settings.dtype, device=settings.device,
        revision=settings.model["revision"], mc_num=settings.mc_num, mc_batch_size=settings.mc_batch_size,
        check_greedy=settings.check_greedy, out=folder, workers=workers, **settings.options,
    )  # fmt: skip
    model.engine.name = settings.model["name"]
    text = model.engine.text
    chat = settings.model["chat"] if settings.model["chat"] is not None else bool(text and text.has_chat_template)
    if chat and not (text and text.has_chat_template):
        raise OptionError(f"model.chat=true, but {settings.model['path']} has no chat template.")
    dataset = settings.dataset
    tasks = load_tasks(dataset["name"], path=dataset["path"], chat=chat, unsafe=settings.unsafe)
    results = _run(model, tasks, settings, chat=chat)
    workers.leave()
    if results is None:
        return None
    result = summary(settings, model, results, folder=folder)
    _publish(result, results["samples"], folder)
    return result


def _run(model: Any, tasks: dict[str, Any], settings: Settings, *, chat: bool) -> Any:
    """lm-eval's own evaluation of the tasks; None but on the first process."""
    from lm_eval.evaluator import evaluate as run

    shots = settings.dataset["n_shot"]
    for name, task in tasks["tasks"].items():
        usual = task.get_config("num_fewshot")
        count = (usual or 0) if shots is None else shots
        if count > (0 if usual == 0 else examples_of(task)):
            raise OptionError(f"dataset.n_shot={count}: {name} has not so many examples to show.")
        size = min(settings.dataset["size"] or len(task.eval_docs), len(task.eval_docs))
        if size < model.world_size:
            raise OptionError(f"{size} problems of {name} are fewer than the {model.world_size} processes.")
        task.set_config(key="num_fewshot", value=count)
        task.set_fewshot_seed(seed=settings.seed)
    return run(
        model, tasks, limit=settings.dataset["size"], apply_chat_template=chat, fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=settings.unsafe, bootstrap_iters=1000,
    )  # fmt: skip


def examples_of(task: Any) -> int:
    """How many worked examples a task can show; not those that it asks."""
    config = task.config
    own = config.fewshot_config and config.fewshot_config.samples
    splits = (config.fewshot_split, config.training_split, config.validation_split)
    return len(task.fewshot_docs()) if own or any(splits) else 0


def folder_name(settings: Settings) -> str:
    """A name for everything that answers depend on: the same command goes on where it stopped."""
    config = settings.config
    decides = {
        **asdict(settings),
        "options": {**settings.options, "cache": describe(config.policy), "decoder": describe(config.rule)},
        "dataset": {**settings.dataset, "size": None},
    }
    for name in ("mc_batch_size", "out", "unsafe", "overrides", "attn_implementation"):
        decides.pop(name)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:8]
    words = (settings.model["name"], settings.dataset["name"], describe(config.policy).partition(":")[0], digest)
    return "-".join(word.replace("/", "_") for word in words)


def summary(settings: Settings, model: Any, results: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """The result as JSON: scores, costs, and what they depend on."""
    from fastdllm.evals.journal import files_of
    from fastdllm.evals.numbers import costs
    from fastdllm.evals.report import fail, scores
    from fastdllm.results import read_results, read_runs

    files = [file for kind in KINDS for file in files_of(folder, kind)]
    asked = asked_of(results["samples"])
    found = {line["id"]: {**line, "file": file.name} for file in files for line in read_results(file)}
    lines = [line for name, line in found.items() if name in asked]
    generated = [line for line in lines if line["file"].startswith("answers.generate.")]
    failures = [{"id": line["id"], "error": line["error"]} for line in lines if "error" in line]
    fail(results, {asked[failure["id"]] for failure in failures})
    runs, shots = {file.name: read_runs(file) for file in files}, results["n-shot"]
    named = [*results["samples"], *(group for group in results.get("groups", {}) if group not in results["samples"])]
    return {
        "command": shlex.join(["eval.py", *settings.overrides]),
        "scores": [{"task": t, "shots": shots.get(t), **s} for t in named for s in scores(results, t)],
        "costs": costs(generated) if generated else None,
        "failures": failures,
        "truncated_prompts": sum(line["truncated"] for line in lines),
        "peak_memory": max(line.get("peak_memory", 0) for line in lines),
        "settings": model.settings(),
        "dataset": {**settings.dataset, "path": None if settings.dataset["path"] is None else "local files"},
        "problems": digest_of(results["samples"]),
        "seed_of_examples": settings.seed,
        "attn_implementation": settings.attn_implementation,
        "batch_size": sorted({run["batch_size"] for of_file in runs.values() for run in of_file}),
        "mc_num": settings.mc_num,
        "check_greedy": settings.check_greedy,
        "sandbox": sandbox_of(settings),
        "task_versions": results["versions"],
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "runs": runs,
    }


def sandbox_of(settings: Settings) -> dict[str, Any] | None:
    """What the programs of a code benchmark ran in; None for a dataset without any."""
    from fastdllm.evals.datasets import SOURCES
    from fastdllm.evals.sandbox import LIMITS, find_isolation

    name = settings.dataset["name"]
    if name not in SOURCES:
        return {"isolation": "none"} if settings.unsafe else None
    if not SOURCES[name].runs_code:
        return None
    return {"isolation": find_isolation(unsafe=settings.unsafe).name, **asdict(LIMITS)}


def digest_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A short name for what was asked and what the right answers were."""
    hashes = sorted((s["doc_hash"], s["prompt_hash"], s["target_hash"]) for given in samples.values() for s in given)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def asked_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[str, int]]:
    """Ids of the answers to the problems of this evaluation, with task and document; a folder may hold more."""
    return {
        f"{task}#{sample['doc_id']}.{index}.{repeat}": (task, sample["doc_id"])
        for task, given in samples.items()
        for sample in given
        for index, answers in enumerate(sample["resps"])
        for repeat in range(len(answers))
    }


def _publish(result: Mapping[str, Any], samples: Mapping[str, Any], folder: Path) -> None:
    """Write ``result.json``, ``result.md`` and every sample with its metrics, and print the table."""
    from fastdllm.evals.report import markdown

    for task, given in samples.items():
        keep = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "filter", "filtered_resps", "failed")
        each = [{k: s[k] for k in (*keep, *s["metrics"]) if k in s} for s in sorted(given, key=lambda s: s["doc_id"])]
        lines = "".join(json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in each)
        write_whole(folder / f"samples.{task.replace('/', '_')}.jsonl", lines)
    write_whole(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    table = markdown(result)
    write_whole(folder / "result.md", table)
    print(table)
    if result["failures"]:
        print(f"{len(result['failures'])} answers failed; {folder / 'result.json'} says why", file=sys.stderr)
    print(f"written to {folder}", file=sys.stderr)
