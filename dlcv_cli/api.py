"""What `import dlcv_cli` offers in Python, see docs/python.md: each name, and the module that defines it.

The imports are for type checkers alone; a test holds that they say what MODULES says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

MODULES = {
    name: module
    for module, names in {
        "dlcv_cli.stages.predict": "Checkpoint open_checkpoint",
        "dlcv_cli.stages.data": "describe_split write_digits write_drawings write_split",
        "dlcv_cli.stages.train_images": "train_finetune train_head train_image_runs train_scratch",
        "dlcv_cli.stages.train_sequences": "generate_sequences train_sequence_runs train_sequences",
        "dlcv_cli.stages.repeats": "name_run",
        "dlcv_cli.stages.evaluate": "Evaluated evaluate",
        "dlcv_cli.stages.calibrate": "calibrate",
        "dlcv_cli.stages.card": "write_card",
        "dlcv_cli.stages.compare": "compare",
        "dlcv_cli.stages.export": "export",
        "dlcv_cli.stages.label_doubts": "find_label_doubts",
        "dlcv_cli.stages.report": "ReportOptions write_report",
        "dlcv_cli.studies.base": "Prediction",
        "dlcv_cli.studies.stored": "read_evaluation read_predictions",
        "dlcv_cli.results.codec": "encode",
        "dlcv_cli.results.comparison": "Comparison",
        "dlcv_cli.results.evaluation": "Evaluation",
        "dlcv_cli.results.metrics": "TrainingMetrics",
        "dlcv_cli.cli.tables": "render",
        "dlcv_cli.config": "CompareConfig DoubtsConfig DrawConfig EvalConfig ExportConfig FinetuneConfig GenConfig "
        "HeadConfig Machine ScratchConfig SeqTrainConfig SplitConfig",
        "dlcv_cli.context": "Context Outcome Reporter",
        "dlcv_cli.errors": "DlcvError ExistsError FileError SettingError",
    }.items()
    for name in names.split()
}

if TYPE_CHECKING:
    from dlcv_cli.cli.tables import render as render
    from dlcv_cli.config import CompareConfig as CompareConfig
    from dlcv_cli.config import DoubtsConfig as DoubtsConfig
    from dlcv_cli.config import DrawConfig as DrawConfig
    from dlcv_cli.config import EvalConfig as EvalConfig
    from dlcv_cli.config import ExportConfig as ExportConfig
    from dlcv_cli.config import FinetuneConfig as FinetuneConfig
    from dlcv_cli.config import GenConfig as GenConfig
    from dlcv_cli.config import HeadConfig as HeadConfig
    from dlcv_cli.config import Machine as Machine
    from dlcv_cli.config import ScratchConfig as ScratchConfig
    from dlcv_cli.config import SeqTrainConfig as SeqTrainConfig
    from dlcv_cli.config import SplitConfig as SplitConfig
    from dlcv_cli.context import Context as Context
    from dlcv_cli.context import Outcome as Outcome
    from dlcv_cli.context import Reporter as Reporter
    from dlcv_cli.errors import DlcvError as DlcvError
    from dlcv_cli.errors import ExistsError as ExistsError
    from dlcv_cli.errors import FileError as FileError
    from dlcv_cli.errors import SettingError as SettingError
    from dlcv_cli.results.codec import encode as encode
    from dlcv_cli.results.comparison import Comparison as Comparison
    from dlcv_cli.results.evaluation import Evaluation as Evaluation
    from dlcv_cli.results.metrics import TrainingMetrics as TrainingMetrics
    from dlcv_cli.stages.calibrate import calibrate as calibrate
    from dlcv_cli.stages.card import write_card as write_card
    from dlcv_cli.stages.compare import compare as compare
    from dlcv_cli.stages.data import describe_split as describe_split
    from dlcv_cli.stages.data import write_digits as write_digits
    from dlcv_cli.stages.data import write_drawings as write_drawings
    from dlcv_cli.stages.data import write_split as write_split
    from dlcv_cli.stages.evaluate import Evaluated as Evaluated
    from dlcv_cli.stages.evaluate import evaluate as evaluate
    from dlcv_cli.stages.export import export as export
    from dlcv_cli.stages.label_doubts import find_label_doubts as find_label_doubts
    from dlcv_cli.stages.predict import Checkpoint as Checkpoint
    from dlcv_cli.stages.predict import open_checkpoint as open_checkpoint
    from dlcv_cli.stages.repeats import name_run as name_run
    from dlcv_cli.stages.report import ReportOptions as ReportOptions
    from dlcv_cli.stages.report import write_report as write_report
    from dlcv_cli.stages.train_images import train_finetune as train_finetune
    from dlcv_cli.stages.train_images import train_head as train_head
    from dlcv_cli.stages.train_images import train_image_runs as train_image_runs
    from dlcv_cli.stages.train_images import train_scratch as train_scratch
    from dlcv_cli.stages.train_sequences import generate_sequences as generate_sequences
    from dlcv_cli.stages.train_sequences import train_sequence_runs as train_sequence_runs
    from dlcv_cli.stages.train_sequences import train_sequences as train_sequences
    from dlcv_cli.studies.base import Prediction as Prediction
    from dlcv_cli.studies.stored import read_evaluation as read_evaluation
    from dlcv_cli.studies.stored import read_predictions as read_predictions
