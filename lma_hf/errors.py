"""Every error that lma_hf raises on purpose. Each message is one line: what is wrong, the value seen, what is
allowed, what to do. `exit_code` is what the commands return: 2 for misuse, 1 when the run itself failed."""


class LmaHfError(Exception):
    """Base of all deliberate errors."""

    exit_code = 2


class ConfigError(LmaHfError, ValueError):
    """A configuration file, flag or argument that cannot be used."""


class DataError(LmaHfError, ValueError):
    """A dataset, split, column or label that cannot be used."""


class LabelMismatchError(DataError):
    """Dataset, teacher and student do not speak of the same labels."""


class SurgeryError(LmaHfError, ValueError):
    """An activation swap, restore or calibration that is not possible."""


class StudentError(LmaHfError, ValueError):
    """A student that cannot be built from this teacher."""


class OutputDirError(LmaHfError, ValueError):
    """An output folder that holds something we must not overwrite."""


class MissingDependencyError(LmaHfError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class DownloadError(LmaHfError, RuntimeError):
    """Something needed from the network could not be had."""

    exit_code = 1


class KernelError(LmaHfError, RuntimeError):
    """A kernel that was asked for cannot be had on this machine."""

    exit_code = 1


class TrainingError(LmaHfError, RuntimeError):
    """The run itself failed, for example because the loss became NaN."""

    exit_code = 1


class LostProcessError(TrainingError):
    """Another process of a run on several is gone."""


class TrainingInterrupted(TrainingError):
    """The run was told to stop by SIGTERM. Its exit code is that of a process that SIGTERM ended."""

    exit_code = 128 + 15


class TeacherCacheError(LmaHfError, RuntimeError):
    """The folder of a teacher's answers cannot be read or written, or the answers are no numbers to keep."""

    exit_code = 1


class PushRefusedError(LmaHfError, ValueError):
    """A folder that must not go to the hub: incomplete, with NaN weights, or one that does not reload."""


class PushError(LmaHfError, RuntimeError):
    """The hub did not take what was pushed."""

    exit_code = 1


class ExportError(LmaHfError, RuntimeError):
    """A model that cannot be exported, or an exported file that does not compute what the model computes."""

    exit_code = 1
