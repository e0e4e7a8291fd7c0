"""Training of planned models on either framework: plans, data, settings, the loop, the run folder, scores."""

from iresnet_core.training.batches import EpochOrder
from iresnet_core.training.common_settings import require_training
from iresnet_core.training.condition_columns import ConditionPlan, condition_values, split_columns
from iresnet_core.training.datasets import (
    IMAGES,
    Dataset,
    DatasetSource,
    array_to_score,
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
from iresnet_core.training.labelled_data import LabelledDataset, labelled_fingerprint, load_labelled
from iresnet_core.training.logit_parameter import share_at_ends
from iresnet_core.training.loop import bits_per_dim, find_trainer, import_trainer, require_able, train, trainer_names
from iresnet_core.training.maf_tables import load_maf_table, maf_table_names
from iresnet_core.training.muon import muon_step, orthogonal_factor
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
from iresnet_core.training.prepared_samples import PreparedSamples, SamplePreparation
from iresnet_core.training.processes import (
    ONE_PROCESS,
    Processes,
    joined_processes,
    launched,
    require_share,
    shared_out,
)
from iresnet_core.training.run import RunConfig, TrainingRun, model_file
from iresnet_core.training.run_folder import RunFolder, read_json, require_hash, require_same_source, write_json
from iresnet_core.training.run_lock import locked_folder
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import (
    RunSettings,
    TrainingSettings,
    default_settings,
    settings_parts,
    with_changes,
)
from iresnet_core.training.task_loop import (
    Evaluation,
    Outcome,
    SilentWatcher,
    StepResult,
    Watcher,
    cosine,
    run_task,
    warmed,
)
from iresnet_core.training.tensorboard_log import has_tensorboard
from iresnet_core.training.toy_data import toy_names
from iresnet_core.training.versions import package_versions

__all__ = [
    "IMAGES",
    "ONE_PROCESS",
    "ActNormPlan",
    "ActivationPlan",
    "ConditionPlan",
    "ConvolutionPlan",
    "Dataset",
    "DatasetSource",
    "DensePlan",
    "EpochOrder",
    "Evaluation",
    "FactorOutPlan",
    "InjectivePadPlan",
    "LabelledDataset",
    "LayerPlan",
    "LogitPlan",
    "MeanScore",
    "Outcome",
    "PreparedSamples",
    "Processes",
    "ResidualPlan",
    "RunConfig",
    "RunFolder",
    "RunSettings",
    "SampleLayout",
    "SamplePreparation",
    "Scores",
    "SilentWatcher",
    "SqueezePlan",
    "StepResult",
    "TrainingRun",
    "TrainingSettings",
    "Watcher",
    "array_to_score",
    "bits_per_dim",
    "condition_values",
    "cosine",
    "default_settings",
    "dequantized",
    "draw_samples",
    "find_trainer",
    "fingerprint",
    "has_tensorboard",
    "import_trainer",
    "joined_processes",
    "labelled_fingerprint",
    "launched",
    "load_dataset",
    "load_labelled",
    "load_maf_table",
    "locked_folder",
    "maf_table_names",
    "mean_score",
    "merged_means",
    "model_file",
    "muon_step",
    "orthogonal_factor",
    "package_versions",
    "planned_features",
    "planned_layers",
    "planned_shape",
    "preimages",
    "read_json",
    "require_able",
    "require_hash",
    "require_same_source",
    "require_share",
    "require_training",
    "run_task",
    "samples_at_once",
    "samples_from_file",
    "scores",
    "settings_parts",
    "share_at_ends",
    "shared_out",
    "split_columns",
    "toy_names",
    "train",
    "trainer_names",
    "transformed",
    "warmed",
    "widest_array",
    "with_changes",
    "write_json",
]
