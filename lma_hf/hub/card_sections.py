"""The parts of the model card after the results: picture, use, recipe, limits, versions."""

import json

import yaml

from lma_hf.hub.card_words import activation_title, count, listing, machine
from lma_hf.hub.curves import CURVES
from lma_hf.hub.public_records import RUN_CONFIG

EXAMPLE = "The film was a pleasant surprise."
EXAMPLE_PAIR = {"text": "A man is playing a guitar on stage.", "text_pair": "Somebody makes music."}
# of a run_config.yaml: where things are and how much is printed, which says nothing about the model
BOOKKEEPING = ("output_dir", "overwrite_output_dir", "report_to", "logging_steps")


def sections(facts):
    """All of them, in order; those without content are left out."""
    parts = [curves(facts), use(facts), recipe(facts), limitations(facts), versions(facts), licence(facts)]
    return [part for part in parts if part]


def curves(facts):
    """The picture of the learned activations, if it is in the folder."""
    if not (facts.folder / CURVES).is_file():
        return ""
    swap = facts.model.config.ffn_activation
    name, replaced = activation_title(swap["name"]), activation_title(swap["replaced"])
    segments = ""
    if swap["name"] == "lma":
        segments = (
            f" Ticks mark where its {swap['num_segments']} pieces meet"
            f"{' (of the median unit)' if swap['per_channel'] else ''}; together they span the mean of the "
            f"pre-activations ± {swap['range_sigmas']:g} standard deviations."
        )
    return (
        f"## What it has learned\n\n![The learned {name} of every layer, beside {replaced}]({CURVES})\n\n"
        f"Every layer's {name}, and below it what is left after {replaced} is subtracted.{segments}"
    )


def use(facts):
    """How to load it, in the ways that work with what the folder holds."""
    name = facts.repo_id or facts.name
    parts = ["## How to use it"]
    if _has_code(facts):
        parts += [
            "With `lma_hf` installed, which also brings the fast kernels:",
            _code(["import lma_hf", *_load(name)]),
            "Without it, with the code that lies in this repository (read it first: it runs on your machine):",
            _code(_load(name, ", trust_remote_code=True")),
            "As a pipeline:",
        ]
        remote = ", trust_remote_code=True"
    else:
        parts += ["It is a plain `transformers` model:", _code(_load(name)), "As a pipeline:"]
        remote = ""
    parts.append(_code(_pipeline(facts, name, remote)))
    return "\n\n".join([*parts, *_other_formats(facts)])


def _has_code(facts):
    config = json.loads((facts.folder / "config.json").read_text(encoding="utf-8"))
    return "auto_map" in config


def _code(lines):
    return "\n".join(["```python", *lines, "```"])


def _load(name, remote=""):
    return [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForSequenceClassification.from_pretrained("{name}"{remote})',
    ]


def _pipeline(facts, name, remote):
    example = json.dumps(EXAMPLE_PAIR if facts.comparison.is_pair else EXAMPLE)
    return [
        "from transformers import pipeline",
        "",
        f'classify = pipeline("text-classification", "{name}"{remote})',
        f"print(classify({example}))",
    ]


def _other_formats(facts):
    said = []
    if getattr(facts.model.config, "ffn_activation", {}).get("folded"):
        said.append("Its activations are folded: constants for inference, which cannot be trained further.")
    files = sorted(path.relative_to(facts.folder).as_posix() for path in facts.folder.rglob("*.onnx"))
    if files:
        said.append(f"For ONNX Runtime there is {listing([f'`{file}`' for file in files])}.")
    return said


def recipe(facts):
    """How it was trained: in words, then the whole configuration."""
    how = _distillation(facts) if "teacher" in facts.results else _fine_tuning(facts)
    config = {key: value for key, value in facts.config.items() if value is not None and key not in BOOKKEEPING}
    text = yaml.safe_dump(config, sort_keys=False).strip()
    return (
        f"## How it was made\n\n{how} {_optimisation(facts)}\n\n"
        f"<details>\n<summary>The whole configuration ({RUN_CONFIG})</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    )


def _fine_tuning(facts):
    smaller = _compression(facts.results.get("compression"))
    return f"Fine-tuned from `{facts.results['model']}` with `lma-hf teach`.{smaller}"


def _distillation(facts):
    config, results = facts.config, facts.results
    soft = f"divergence from the teacher's logits at temperature {config['temperature']:g}"
    if config.get("distill_loss_type") == "mse":
        soft = "squared error of the teacher's logits"
    parts = {
        "cross entropy with the labels" if facts.model.config.num_labels > 1 else "squared error": "task_loss_weight",
        soft: "distill_loss_weight",
        "distance of hidden states": "hidden_loss_weight",
        "1 - cosine of hidden states": "hidden_cosine_loss_weight",
        "difference of attention": "attention_loss_weight",
        "divergence of query, key and value relations": "relation_loss_weight",
    }
    # runs from before a loss was there do not name it
    loss = listing([f"{config[key]:g} x {what}" for what, key in parts.items() if config.get(key)])
    if config.get("feature_stage"):
        loss += f", in two stages ({config['feature_stage']:.0%} of the run on what happens inside the teacher)"
    if config.get("schedules"):
        loss += f", with {listing(config['schedules'])} over the run"
    start = ""
    if config.get("student_name_or_path"):
        start = f" It started from the pretrained `{config['student_name_or_path']}`."
    elif config.get("hidden_size") is None:
        layers = listing(results["layer_map"])
        start = f" It started from layers {layers} of the teacher `{results['teacher']['name']}` (counted from 0)."
    smaller = _quantization(results.get("quantization")) + _compression(results.get("compression"))
    return f"Distilled with `lma-hf distill`.{start} The loss is {loss}.{smaller}"


def _quantization(record):
    if record is None:
        return ""
    if record["method"] == "product":
        count, noise = len(record["modules"]), record["noise_rate"]
        if noise < 1:
            return f" In each step a random {noise:.0%} of the weights of {count} modules were 0 (Quant-Noise)."
        return f" The weights of {count} modules are product-quantized; their codebooks were trained."
    groups = "a scale for each row" if record["group_size"] is None else f"a scale for {record['group_size']} of them"
    noise = record["noise_rate"]
    share = "all of them" if noise == 1 else f"a random {noise:.0%} of them (Quant-Noise)"
    return (
        f" The weights of {len(record['modules'])} modules have {record['bits']} bits, with {groups}; in training "
        f"{share} were rounded at each step."
    )


def _compression(record):
    if record is None:
        return ""
    steps, weights = [], record.get("weights")
    if cut := record.get("vocabulary"):
        steps.append(f"its vocabulary was cut from {cut['tokens_before']:,} to {cut['tokens_after']:,} tokens")
    # weights that were quantized in training are told with it, and all else came before
    trained = weights is not None and "noise_rate" in weights
    if weights and not trained:
        count = weights["calibration_samples"]
        how = "to the nearest level" if count is None else f"for {count:,} training rows (GPTQ)"
        to = f"rounded to {weights['bits']} bits, {how}" if weights["method"] == "scalar" else "product-quantized"
        steps.append(f"the weights of {len(weights['modules'])} modules were {to}")
    return f" {'Before that' if trained else 'Afterwards'}, with `lma-hf compress`, {listing(steps)}." if steps else ""


def _optimisation(facts):
    config, training = facts.config, facts.results["training"]
    batch = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    batch *= facts.results["num_processes"]
    rows = f"{config['max_train_samples']:,} random training rows" if config.get("max_train_samples") else "all rows"
    rates = f"learning rate {config['learning_rate']:g}"
    if facts.comparison.student.activation not in (None, "gelu", "relu"):
        rates += f" (activations: {config['activation_learning_rate']:g})"
    frozen = ", word embeddings frozen" if config.get("freeze_embeddings") else ""
    return (
        f"AdamW took {training['num_steps']:,} steps of {batch} rows over {rows} "
        f"({count(config['num_train_epochs'], 'epoch')}): {rates}, {config['lr_scheduler_type']} decay after "
        f"{100 * config['warmup_ratio']:g} % warm-up, precision {config['mixed_precision']}{frozen}, seed "
        f"{config['seed']}. That took {training['train_seconds']:,.0f} seconds on {machine(facts.environment)}."
    )


def limitations(facts):
    """What was not measured, or only once."""
    comparison, config = facts.comparison, facts.config
    splits = listing([f"`{split}`" for split in comparison.student.scores])
    said = [
        f"It was scored on {splits} of {facts.task_title} only. Other texts, other languages, robustness and fairness "
        "were not tested.",
        "It has whatever biases its teacher and the training data have."
        if "teacher" in facts.results
        else "It has whatever biases its base model and the training data have.",
        f"Inputs of more than {config['max_length']} tokens were cut in training and in scoring.",
    ]
    if len(comparison.student.runs) == 1:
        said.append("This is one run: another seed gives another score, and by how much was not measured.")
    if config.get("eval_steps") or config["num_train_epochs"] > 1:
        said.append("The checkpoint was chosen on the rows that it is scored on, so the score is a little too good.")
    if config.get("max_train_samples"):
        said.append(
            f"It saw at most {config['max_train_samples']:,} training rows; what more would bring is not known."
        )
    said += _limits_of_comparison(facts)
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in said)


def _limits_of_comparison(facts):
    comparison, said = facts.comparison, []
    if comparison.baseline_differences:
        differences = listing(
            [
                f"`{key}` ({mine} here, {theirs} there)"
                for key, (mine, theirs) in comparison.baseline_differences.items()
            ]
        )
        said.append(f"Besides the activation, the baseline differs in {differences}.")
    if comparison.student.latency_ms:
        said.append("Latency was measured on one machine only, and on no GPU.")
    if _has_code(facts) and comparison.student.latency_ms and comparison.kernel not in (None, "reference"):
        said.append("Without `lma_hf` its activations run on PyTorch's operators, whose speed was not measured.")
    return said


def versions(facts):
    """What it was trained with, where and when."""
    environment = facts.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    commit = f", lma_hf at commit `{environment['git_commit']}`" if environment.get("git_commit") else ""
    return (
        f"## Versions\n\nTrained on {environment['date'][:10]} on {machine(environment)}, with Python "
        f"{environment['python']}, {packages}{commit}."
    )


def licence(facts):
    """Licence and base model, or that they are not known."""
    provenance = facts.provenance
    if provenance.license:
        said = f"`{provenance.license}`, from {provenance.source}."
    else:
        said = "Not known: no model that this one was made from names a licence. Ask whoever published it."
    if provenance.base_model:
        names = [provenance.base_model] if isinstance(provenance.base_model, str) else provenance.base_model
        said += f" Base model: {listing([f'[{name}](https://huggingface.co/{name})' for name in names])}."
    return f"## Licence\n\n{said} The training data has terms of its own."
