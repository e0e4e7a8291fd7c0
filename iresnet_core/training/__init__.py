"""Training of planned models on either framework: plans, data, settings, the loop, the run folder, scores."""

from iresnet_core.training.condition_columns import ConditionPlan, condition_values, split_columns
from iresnet_core.training.datasets import (
    IMAGES,
    Dataset,
    DatasetSource,
    dequantized,
    fingerprint,
    load_dataset,
    samples_from_file,
)
from iresnet_core.training.evaluation import (
    MeanScore,
    Scores,
    draw_samples,
    mean_score,
    merged_means,
    preimages,
    samples_at_once,
    scores,
    transformed,
)
from iresnet_core.training.loop import bits_per_dim, find_trainer, train, trainer_names
from iresnet_core.training.maf_tables import load_maf_table, maf_table_names
from iresnet_core.training.plans import (
    ActivationPlan,
    ActNormPlan,
    ConvolutionPlan,
    DensePlan,
    FactorOutPlan,
    InjectivePadPlan,
    LayerPlan,
    LogitPlan,
    ResidualPlan,
    SqueezePlan,
    planned_features,
    planned_layers,
    planned_shape,
    widest_array,
)
from iresnet_core.training.prepared_samples import Prepared, SamplePreparation
from iresnet_core.training.run import RunConfig, TrainingRun, model_file
from iresnet_core.training.run_lock import locked_folder
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import (
    RunSettings,
    TrainingSettings,
    default_settings,
    share_at_ends,
    with_changes,
)
from iresnet_core.training.task_loop import Outcome, StepResult
from iresnet_core.training.tensorboard_log import has_tensorboard
from iresnet_core.training.toy_data import toy_names

__all__ = [
    "IMAGES",
    "ActNormPlan",
    "ActivationPlan",
    "ConditionPlan",
    "ConvolutionPlan",
    "Dataset",
    "DatasetSource",
    "DensePlan",
    "FactorOutPlan",
    "InjectivePadPlan",
    "LayerPlan",
    "LogitPlan",
    "MeanScore",
    "Outcome",
    "Prepared",
    "ResidualPlan",
    "RunConfig",
    "RunSettings",
    "SampleLayout",
    "SamplePreparation",
    "Scores",
    "SqueezePlan",
    "StepResult",
    "TrainingRun",
    "TrainingSettings",
    "bits_per_dim",
    "condition_values",
    "default_settings",
    "dequantized",
    "draw_samples",
    "find_trainer",
    "fingerprint",
    "has_tensorboard",
    "load_dataset",
    "load_maf_table",
    "locked_folder",
    "maf_table_names",
    "mean_score",
    "merged_means",
    "model_file",
    "planned_features",
    "planned_layers",
    "planned_shape",
    "preimages",
    "samples_at_once",
    "samples_from_file",
    "scores",
    "share_at_ends",
    "split_columns",
    "toy_names",
    "train",
    "trainer_names",
    "transformed",
    "widest_array",
    "with_changes",
]
