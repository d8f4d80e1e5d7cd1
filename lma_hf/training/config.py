"""What a run can be told: one dataclass a command. YAML files and flags carry the same names."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lma_hf.distillation.objective import FEATURES
from lma_hf.errors import ConfigError
from lma_hf.training.loss_config import LossConfig
from lma_hf.training.options import check_names, check_not_negative, check_positive, check_seed, option
from lma_hf.training.quantize_config import QuantizeConfig

MAX_ELEMENTS = 2**28  # of a tensor that `profile` times; the authors' form needs about 40 bytes for each


@dataclass(kw_only=True)
class DataConfig:
    """Which task and data a command works on."""

    task_name: str | None = option(None, "GLUE task (cola sst2 mrpc stsb qqp mnli qnli rte wnli); unset: own data")
    dataset: str = option("nyu-mll/glue", "hub id, or folder with <task>/<split>.parquet|csv|tsv|jsonl")
    dataset_config: str | None = option(None, "configuration of a hub dataset that has several; unset: the task_name")
    text_columns: list[str] | None = option(None, "own data: the text column, or the two of a sentence pair")
    label_column: str = option("label", "column of the label")
    label_names: list[str] | None = option(None, "own data: class names in id order; unset: taken from the data")
    is_regression: bool = option(False, "own data: the label is a number")
    train_split: str | None = option(None, "training split, where it differs from the task's; slices: train[:90%]")
    validation_split: str | None = option(
        None, "validation split, where it differs from the task's; slices: train[90%:]"
    )
    max_length: int = option(128, "longest input in tokens; longer ones are truncated")
    max_train_samples: int | None = option(None, "train on a random subset of so many rows")
    max_eval_samples: int | None = option(None, "evaluate on a random subset of so many rows")
    per_device_eval_batch_size: int = option(64, "rows of an evaluation batch, on each device")
    seed: int = option(42, "seed of row subsets, weights, dropout and data order")

    def __post_init__(self):
        if self.task_name is None and not self.text_columns:
            raise ConfigError("neither task_name nor text_columns is set; name a GLUE task or your data's columns")
        if self.task_name is not None and (self.text_columns or self.label_names or self.is_regression):
            raise ConfigError(
                f"task_name is {self.task_name!r}, so text_columns, label_names and is_regression are known; drop them"
            )
        check_positive(self, "per_device_eval_batch_size", "max_train_samples", "max_eval_samples")
        check_seed(self)


@dataclass(kw_only=True)
class TrainConfig(DataConfig):
    """How a model is trained; common to `teach` and `distill`."""

    output_dir: str = field(metadata={"help": "folder for the model and the run's records"})
    overwrite_output_dir: bool = option(False, "delete what output_dir holds")
    num_train_epochs: int = option(3, "passes over the training rows")
    max_steps: int | None = option(None, "stop after so many optimizer steps")
    per_device_train_batch_size: int = option(32, "rows of a training batch, on each device")
    gradient_accumulation_steps: int = option(1, "batches that make one optimizer step")
    tokens_per_batch: int | None = option(
        None, "padded tokens of a training batch, on each device, in place of a fixed number of rows"
    )
    learning_rate: float = option(5e-5, "peak learning rate of the weights")
    activation_learning_rate: float = option(1e-3, "peak learning rate of activation parameters (no weight decay)")
    weight_decay: float = option(0.01, "AdamW weight decay; not on biases, norms and activations")
    lr_scheduler_type: Literal["linear", "cosine"] = option("linear", "decay after the warm-up")
    warmup_ratio: float = option(0.1, "share of the steps that warm the learning rate up")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: no clipping")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "autocast; unset: accelerate's setting")
    gradient_checkpointing: bool = option(False, "trade time for memory")
    compile: bool = option(False, "torch.compile the model; minutes at the start, and on CPUs no gain was seen")
    train: Literal["all", "activations", "activations+bias", "activations+head"] = option(
        "all", "what trains; the rest is frozen, and a delta of what was trained is stored in output_dir/delta"
    )
    freeze_embeddings: bool = option(False, "do not train the word embeddings (faster on CPU)")
    eval_steps: int | None = option(None, "evaluate every so many steps; unset: after every epoch")
    early_stopping_patience: int | None = option(None, "stop after so many evaluations without a better score")
    logging_steps: int = option(20, "steps between two lines in metrics.jsonl")
    report_to: list[str] = option([], "Accelerate trackers, for example tensorboard or wandb")
    resume: bool = option(False, "go on with the interrupted run in output_dir; starts anew where there is none")
    save_steps: int | None = option(None, "write a checkpoint every so many steps")
    save_minutes: float | None = option(15.0, "write a checkpoint every so many minutes; null: only at SIGTERM")
    save_total_limit: int = option(2, "how many checkpoints are kept, the newest")
    on_nan: Literal["stop", "skip"] = option("stop", "a loss or gradient that is not finite: stop, or skip the step")
    ddp_timeout: int = option(600, "seconds that a process waits for the others before it gives up")

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self,
            *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
            "tokens_per_batch",
            *("eval_steps", "early_stopping_patience", "logging_steps"),
            *("save_steps", "save_minutes", "save_total_limit", "ddp_timeout"),
        )
        if self.resume and self.overwrite_output_dir:
            raise ConfigError("resume and overwrite_output_dir are both true; pass one of them")
        check_not_negative(self, "learning_rate", "activation_learning_rate", "weight_decay", "max_grad_norm")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio is {self.warmup_ratio}, allowed are 0 up to but not including 1")


@dataclass(kw_only=True)
class TeachConfig(TrainConfig):
    """Fine-tune a teacher."""

    model_name_or_path: str = field(metadata={"help": "pretrained model: hub id or folder"})


@dataclass(kw_only=True)
class DistillConfig(QuantizeConfig, LossConfig, TrainConfig):
    """Distil a shallow student from a fine-tuned teacher."""

    teacher: str = field(metadata={"help": "fine-tuned teacher: hub id or folder"})
    student_name_or_path: str | None = option(
        None, "pretrained student, in place of one built from the teacher's layers: hub id or folder"
    )
    num_layers: int = option(3, "layers of the student")
    layer_map: list[str] = option(["uniform"], "uniform, first, last, or one teacher layer (from 0) a student layer")
    intermediate_size: int | None = option(None, "FFN width; the teacher's most important units are kept")
    hidden_size: int | None = option(None, "width of a student that is trained from scratch")
    num_attention_heads: int | None = option(None, "heads of a student that is trained from scratch")
    activation: str = option("lma", "FFN activation of the student: lma relu gelu gelu_affine prelu swish aplu")
    num_segments: int = option(8, "pieces of an LMA, hinges of an APLU")
    range_sigmas: float = option(3.0, "LMA: segments span so many deviations to each side of the mean")
    statistics: Literal["batch", "running", "frozen"] = option("running", "LMA: what places the segments in training")
    init: Literal["relu", "fit"] = option("fit", "LMA: start as a ReLU, or fitted to the teacher's activation")
    continuous: bool = option(False, "LMA: neighbouring pieces meet")
    per_channel: bool = option(False, "LMA: own pieces for every unit")
    calibration_batches: int = option(8, "training batches that place the segments and rank the FFN units")
    teacher_cache: str | None = option(None, "folder that keeps the teacher's answers for later runs; unset: none")
    allow_weak_teacher: bool = option(False, "go on although the teacher is no better than the majority class")
    learning_rate: float = option(3e-4, "peak learning rate of the weights")

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "calibration_batches")
        self.check_losses()
        self.check_quantization()
        if self.quantize is not None and self.train != "all":
            raise ConfigError(f"quantize is {self.quantize!r} and train {self.train!r}, allowed then is all")
        if self.teacher_cache:
            self._check_teacher_cache()
        if self.student_name_or_path is not None:
            self._check_pretrained_student()
        from_scratch = self.hidden_size is not None or self.num_attention_heads is not None
        if from_scratch and (self.train != "all" or self.freeze_embeddings):
            frozen = f"train is {self.train!r}" if self.train != "all" else "freeze_embeddings is true"
            raise ConfigError(
                f"{frozen}, but a student with its own hidden_size or num_attention_heads starts from random weights, "
                "which would stay random; drop these or train all"
            )

    def _check_teacher_cache(self):
        if live := {"attention", "relation"} & set(self.weighted_parts):
            raise ConfigError(
                f"teacher_cache keeps logits and hidden states, but {min(live)}_loss_weight looks into the teacher; "
                "drop one of them"
            )
        cache, output_dir = (Path(name).expanduser().resolve() for name in (self.teacher_cache, self.output_dir))
        if cache.is_relative_to(output_dir):  # which the run empties when training starts
            raise ConfigError(
                f"teacher_cache {self.teacher_cache} lies in output_dir {self.output_dir}, which has to be empty when "
                "training starts; name a folder outside it"
            )

    def _check_pretrained_student(self):
        shape = ("num_layers", "layer_map", "intermediate_size", "hidden_size", "num_attention_heads")
        defaults = {field.name: field.default for field in fields(self)} | {"layer_map": ["uniform"]}
        along_layers = [f"{part}_loss_weight" for part in FEATURES if part in self.weighted_parts]
        if self.replaces_modules:
            along_layers.append("replacement_rate")
        changed = [key for key in (*shape, "activation_warmup_steps") if getattr(self, key) != defaults[key]]
        if wrong := changed + along_layers:
            raise ConfigError(
                f"student_name_or_path is {self.student_name_or_path!r}, which has its own layers, but {wrong[0]} is "
                "about layers taken from the teacher; drop one of them"
            )

    @property
    def resolved_layer_map(self):
        """The layer map as `build_student` takes it: a name, or a list of ints."""
        if all(part.isascii() and part.isdigit() for part in self.layer_map):
            return [int(part) for part in self.layer_map]
        return self.layer_map[0] if len(self.layer_map) == 1 else self.layer_map


@dataclass(kw_only=True)
class EvaluateConfig(DataConfig):
    """Evaluate a saved model."""

    model_dir: str = field(metadata={"help": "saved model: folder or hub id"})
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")
    trust_remote_code: bool = option(False, "run Python code that comes with the model; only for sources you trust")
    output_file: str | None = option(None, "also write the results as JSON here")
    predict: str | None = option(None, "also write GLUE test-server files (RTE.tsv, ...) into this folder")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "autocast; unset: accelerate's setting")

    def __post_init__(self):
        super().__post_init__()
        if self.predict is not None and self.task_name is None:
            raise ConfigError(f"predict is {self.predict!r}, but only GLUE tasks have a test server; set task_name")


@dataclass(kw_only=True)
class PushConfig:
    """Push a finished run's model to the hub."""

    model_dir: str = field(metadata={"help": "output_dir of a finished run"})
    repo_id: str = field(metadata={"help": "repository on the hub: user/name or organization/name"})
    private: bool = option(True, "a new repository is private; an existing one stays as it is")
    revision: str | None = option(None, "branch, created if it is missing; unset: main")
    commit_message: str | None = option(None, "message of the one commit")
    token: str | None = field(
        default=None, repr=False, metadata={"help": "access token; unset: HF_TOKEN or the saved login"}
    )
    dry_run: bool = option(False, "check everything and list the files and their sizes, without any network")
    timeout_s: int = option(120, "seconds without a sign of the hub that count as a failure")
    license: str | None = option(None, "card: licence id such as apache-2.0; unset: that of the teacher")
    base_model: str | None = option(None, "card: hub id; unset: the teacher if it is there, else what it names")
    teacher: str | None = option(None, "card: folder or hub id of the teacher; unset: where the run found it")
    baselines: list[str] = option([], "card: folders of runs with another activation, for example gelu, one a seed")
    other_seeds: list[str] = option([], "card: folders of runs that differ from this one in the seed only")
    dataset: str | None = option(None, "card: where the data is now, for latencies; unset: where the run found it")
    with_latency: bool = option(True, "card: time the models on this machine's CPU, over validation texts")

    def __post_init__(self):
        check_positive(self, "timeout_s")
        if self.commit_message is not None and not self.commit_message.strip():
            raise ConfigError("commit_message is empty; write what changes, or leave it out")


@dataclass(kw_only=True)
class ExportConfig:
    """Write a saved model in a format that other runtimes load."""

    model_dir: str = field(metadata={"help": "saved sequence classification model: folder or hub id"})
    output_dir: str = field(metadata={"help": "folder for the exported model, its config and its tokenizer"})
    format: Literal["onnx", "torch"] = option("onnx", "onnx: model.onnx; torch: model.pt2, a torch.export program")
    quantize: Literal["int8"] | None = option(None, "onnx: also write model_quantized.onnx")
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")
    trust_remote_code: bool = option(False, "run Python code that comes with the model; only for sources you trust")

    def __post_init__(self):
        if self.quantize is not None and self.format != "onnx":
            raise ConfigError(f"quantize is {self.quantize!r}, but format is {self.format!r}; quantize works on onnx")


@dataclass(kw_only=True)
class ReportConfig:
    """Write the report of a study that `compare` has run."""

    study_dir: str = field(metadata={"help": "output_dir of the study"})
    baselines: list[str] | None = option(
        None, "what the others are compared with: activations, or axes as NAME=VALUE; unset: the study's baseline"
    )
    wanted_difference: float = option(0.5, "in points: say how many seeds would be needed to find it")

    def __post_init__(self):
        check_positive(self, "wanted_difference")
        if self.baselines is not None and len(set(self.baselines)) != max(1, len(self.baselines)):
            raise ConfigError(f"baselines are {self.baselines}, allowed is a list of one or more, each once")


@dataclass(kw_only=True)
class QuickstartConfig:
    """The first run: teacher, GELU student and LMA student on movie reviews, without a hub."""

    output_dir: str = option("runs/quickstart", "folder for the data, the teacher, the students and results.json")
    overwrite_output_dir: bool = option(False, "delete what output_dir holds")
    pretrained: str | None = option(None, "local copy of the pretrained BERT: model folder or wheel")
    reviews: str | None = option(None, "local copy of the reviews: csv.bz2 or wheel")
    cache_dir: str = option("~/.cache/lma_hf", "where downloads are kept")
    num_layers: int = option(3, "layers of the students")
    teacher_epochs: int = option(2, "passes over the training rows for the teacher")
    student_epochs: int = option(3, "passes over the training rows for each student")
    max_train_samples: int | None = option(6000, "train on a random subset of so many rows; null: all")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "unset: bf16 where the hardware has it")
    seed: int = option(42, "seed of weights, dropout and data order")

    def __post_init__(self):
        check_positive(self, "num_layers", "teacher_epochs", "student_epochs", "max_train_samples")
        check_seed(self)


@dataclass(kw_only=True)
class ProfileConfig:
    """Which kernel computes LMA on this machine, and how fast it is there."""

    output_dir: str | None = option(None, "folder for benchmark.csv, environment.json and the plots of activations")
    parts: list[str] = option(
        ["activation"], "what is timed: activation, ffn, model (a BERT), export (model_dir as ONNX)"
    )
    model_dir: str | None = option(None, "export: saved model whose exports are timed; folder or hub id")
    shapes: list[str] = option(["4096x1536"], "activation: tokens x channels")
    dtypes: list[str] = option(["float32", "bfloat16"], "float32 bfloat16 float16; autocast for ffn and model")
    threads: list[int] | None = option(None, "numbers of CPU threads; only activation takes several; unset: torch's")
    candidates: list[str] | None = option(None, "what is timed of a part; unset: all, but not the slowest if large")
    repeats: int = option(20, "timed repeats, of which the median is taken")
    hold_memory: bool = option(True, "let the C library keep freed memory, so that no page faults are timed")
    models: list[str] | None = option(
        None,
        "NAME=FOLDER of saved models to put beside each other, in place of parts; the first is a run's",
    )
    runtimes: list[str] = option(["pytorch"], "what runs the models: pytorch torchao-int8 onnx onnx-int8")
    dataset: str | None = option(None, "models: where the texts are now; unset: where the run found them")

    def __post_init__(self):
        check_names("runtimes", self.runtimes, ("pytorch", "torchao-int8", "onnx", "onnx-int8"))
        _ = self.resolved_models
        check_names("parts", self.parts, ("activation", "ffn", "model", "export"))
        if (self.model_dir is not None) != ("export" in self.parts):
            raise ConfigError(
                f"model_dir is {self.model_dir!r} and parts are {', '.join(self.parts)}; part export, and no other, "
                "needs the --model_dir of a saved model"
            )
        check_names("dtypes", self.dtypes, ("float32", "bfloat16", "float16"))
        check_names("threads", self.threads, range(1, (os.cpu_count() or 1) + 1))
        check_positive(self, "repeats")
        if not self.resolved_shapes:
            raise ConfigError("shapes is empty; name tokens x channels such as 4096x1536")

    @property
    def resolved_models(self):
        """Name -> folder. Raises: ConfigError if an entry is not NAME=FOLDER, or a name stands twice."""
        entries = [text.partition("=") for text in self.models or []]
        for text, (name, _, folder) in zip(self.models or [], entries, strict=True):
            if not (name and folder) or [other for other, *_ in entries].count(name) > 1:
                raise ConfigError(f"models names {text!r}, allowed is NAME=FOLDER with another NAME for each")
        if self.models is None and (self.dataset is not None or self.runtimes != ["pytorch"]):
            raise ConfigError("runtimes and dataset are about models; name some as --models NAME=FOLDER")
        return {name: folder for name, _, folder in entries}

    @property
    def resolved_shapes(self):
        """The shapes as pairs of ints, each once. Raises: ConfigError if one is no shape or too large."""
        return list(dict.fromkeys(_to_shape(text) for text in self.shapes))


def _to_shape(text):
    match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
    shape = tuple(map(int, match.groups())) if match else None
    if shape is None or shape[0] * shape[1] > MAX_ELEMENTS:
        raise ConfigError(
            f"shapes names {text!r}, allowed are tokens x channels such as 4096x1536, up to {MAX_ELEMENTS:,} elements"
        )
    return shape
