"""The model's life cycle with the built-in model: the effect of fine-tuning, the loss of quantization, and the agreement of evaluation with
lm-evaluation-harness on transformers."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.jobs.access import Access
from deployments.jobs.evaluate.run import EvaluateRun
from neox_serve.client import Client, JobState
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.quantize import REPORT_FILE, SCHEME_NAMES
from neox_serve.model.chat import DEFAULT_TEMPLATE, render
from tests.bench.engines.engine_comparison import VALUES
from tests.bench.engines.systems import cluster_values
from tests.bench.faults.cancellation import NotMeasuredError
from tests.bench.view import View
from tests.clusters import running_cluster, wait_until
from tests.evaluation_tasks import TASKS, by_transformers, likelihood_of, responses, write_tasks
from tests.python_lines import Question, questions, right_fraction
from tests.run_arguments import arguments_of

_TRAINED = 640
_LIKELIHOODS = ("lines_kind", "lines_cloze", "lines_next")
_TEXTS = "lines_write"


@dataclass(frozen=True, slots=True)
class LifeCycle:
    """The results of all parts."""

    accuracy_before: float
    """Accuracy of the model on a task."""
    accuracy_after: float
    """Accuracy with an adapter that a job has trained."""
    parameters_fraction: float
    """Number of the adapter's parameters relative to the model's."""
    likelihood_error: float
    """Maximum difference of a log-likelihood from transformers."""
    different_texts: float
    """Number of greedy texts that differ from those of transformers."""
    quality: Mapping[str, float]
    """Held-out bits per byte before quantization relative to after, by scheme."""


def run(folder: Path, view: View) -> LifeCycle:
    """Measures all parts. Raises StartError if the cluster does not start, and NotMeasuredError if a job fails."""
    registry, all_questions = folder / "registry", questions()
    engine = {**VALUES["generation"]["engine"], "dtype": "float32"}  # so that likelihoods can be compared with those of transformers
    values = cluster_values({**VALUES, "generation": {"engine": engine}}) | {"model": {"registry": str(registry)}}
    with view.progress("life cycle: parts", 2 + len(SCHEME_NAMES)) as progress:
        with running_cluster(folder, values) as cluster, Client(cluster.address) as client:
            before, after = _fine_tuned(client, all_questions, folder)
            progress(1)
            error, different = _evaluated(cluster.address, folder)
            progress(2)
        quality = dict[str, float]()
        for scheme in SCHEME_NAMES:
            quality[scheme] = _quantized(scheme, folder)
            progress(2 + len(quality))
    card = json.loads((registry / "lines" / "training.json").read_text(encoding="utf-8"))
    return LifeCycle(before, after, card["parameters_fraction"], error, different, quality)


def _fine_tuned(client: Client, all_questions: Sequence[Question], folder: Path) -> tuple[float, float]:
    """Returns the accuracy on questions that the adapter was not trained on, without and with the adapter."""
    source, tested = folder / "lines.jsonl", all_questions[_TRAINED:]
    source.write_text("".join(f"{json.dumps(one.example)}\n" for one in all_questions[:_TRAINED]), encoding="utf-8")
    targets = ["query_key_value", "dense", "dense_h_to_4h"]
    job = client.create_finetune(str(source), "lines", rank=4, targets=targets, epochs=5, learning_rate=5e-3, batch_tokens=2048)
    last = list(client.watch_job(job.job_id))[-1]
    if last.state is not JobState.SUCCEEDED:
        raise NotMeasuredError(f"the job failed: {last.message}")
    wait_until(lambda: "lines" in client.models()[0].adapters)
    texts = [render(DEFAULT_TEMPLATE, one.asked, end_of_text="<|endoftext|>") for one in tested]
    plain = [client.generate(text, max_tokens=8, temperature=0).results[0].completions[0].text.split("\n")[0] for text in texts]
    fine_tuned = [
        client.generate([one.asked], adapter="lines", max_tokens=8, temperature=0).results[0].completions[0].text for one in tested
    ]
    return right_fraction(tested, plain), right_fraction(tested, fine_tuned)


def _evaluated(address: str, folder: Path) -> tuple[float, float]:
    """Returns the maximum difference of a log-likelihood and the number of texts that differ."""
    tasks = folder / "tasks"
    tasks.mkdir()
    write_tasks(tasks)
    job = EvaluateRun(EvaluateWork(TASKS, str(folder / "scores.json")), Access(address), tasks)
    _run("deployments.jobs.evaluate", *arguments_of(job))
    found, truth = json.loads(Path(job.work.output).read_text(encoding="utf-8")), by_transformers(tasks)
    errors = [
        abs(likelihood_of(ours)[0] - likelihood_of(theirs)[0])
        for task in _LIKELIHOODS
        for mine, others in zip(responses(found, task), responses(truth, task), strict=True)
        for ours, theirs in zip(mine, others, strict=True)
    ]
    texts = zip(responses(found, _TEXTS), responses(truth, _TEXTS), strict=True)
    return max(errors), float(sum(ours != theirs for ours, theirs in texts))


def _quantized(scheme: str, folder: Path) -> float:
    """Returns the held-out bits per byte before quantization relative to after."""
    library = Path(sysconfig.get_path("stdlib"))
    calibration, held_out, output = folder / "calibration.txt", folder / "held_out.txt", folder / scheme
    calibration.write_text("".join((library / name).read_text(encoding="utf-8") for name in ("argparse.py", "ast.py", "tarfile.py")))
    held_out.write_text((library / "shutil.py").read_text(encoding="utf-8"))
    files = ["--calibration", str(calibration), "--held-out", str(held_out), "--output", str(output)]
    _run("deployments.jobs.quantize", "--scheme", scheme, *files)
    return float(json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))["quality_fraction"])


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(f"{module}: {done.stderr[-500:]}")
