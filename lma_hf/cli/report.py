"""`lma-hf report`: the report of a study, written again from its records."""

import logging

from lma_hf.compare.report.write import write_report

logger = logging.getLogger(__name__)


def report(config):
    """Write the report of a study's finished cells; nothing is run again.

    Args: config: a `ReportConfig`.
    Returns: the report's folder.
    """
    folder = write_report(config.study_dir, baselines=config.baselines, wanted=config.wanted_difference)
    logger.info("the report is in %s", folder / "report.html")
    return folder
