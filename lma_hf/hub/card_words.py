"""How the model card calls tasks, metrics, splits and numbers."""

GLUE = "nyu-mll/glue"
GLUE_TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
# our name of a metric -> (its name on the hub, in words, heading of a column)
METRICS = {
    "accuracy": ("accuracy", "accuracy", "accuracy, %"),
    "f1": ("f1", "F1", "F1, %"),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation", "Matthews correlation x 100"),
    "pearson": ("pearsonr", "Pearson correlation", "Pearson correlation x 100"),
    "spearmanr": ("spearmanr", "Spearman correlation", "Spearman correlation x 100"),
}
ARCHITECTURE_TITLES = {"Bert": "BERT", "Roberta": "RoBERTa", "Electra": "ELECTRA", "Albert": "ALBERT"}
ACTIVATION_TITLES = {
    "lma": "LMA",
    "gelu": "GELU",
    "gelu_affine": "GELU with scale and shift",
    "relu": "ReLU",
    "prelu": "PReLU",
    "swish": "Swish",
    "aplu": "APLU",
}


def score(value):
    """A score in [-1, 1] as the card shows it, times 100."""
    return f"{100 * value:.2f}"


def points(value):
    """A difference of scores in [-1, 1], in points (times 100)."""
    return f"{100 * value:.1f}"


def listing(words, last="and"):
    """Words as a list in a sentence."""
    words = list(map(str, words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def count(number, noun):
    """A number with its noun: "1 epoch", "2 epochs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def activation_title(name):
    """An activation's name in prose."""
    return ACTIVATION_TITLES.get(name, name)


def markdown_table(rows):
    """Dicts with the same keys as a Markdown table; the first column stands left, the others right."""
    columns = list(rows[0])
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([row[column] for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine(environment):
    """The machine of an environment.json, in words."""
    if environment.get("cuda_device"):
        return f"a GPU ({environment['cuda_device']})"
    counts = {"core": environment.get("cpu_count"), "thread": environment.get("torch_threads")}
    parts = [environment.get("processor"), *(count(number, noun) for noun, number in counts.items() if number)]
    return f"a CPU ({', '.join(filter(None, parts))})"
