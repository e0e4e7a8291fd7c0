"""Residual branches g: activations, their linearization at a batch, chains of layers, exact traces."""

from iresnet_core.branches.activation_functions import ACTIVATIONS, SWISH_SLOPE
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.branches.chain import Chain
from iresnet_core.branches.concatenation import DenseConcatenation
from iresnet_core.branches.conditioning import conditioned, entries, of_samples, without_condition
from iresnet_core.branches.dense_traces import SlopeTrace
from iresnet_core.branches.fixed_layers import Fixed, FourierFeatures, Reshape, average_pooling
from iresnet_core.branches.joint_derivative import Control, JointPass, linearize_jointly
from iresnet_core.branches.learned_activations import PReLU, ScaledActivation
from iresnet_core.branches.linearization import (
    Branch,
    ChainStructure,
    Linearization,
    evaluate,
    layer_growth,
    layer_product,
    linearize,
    stated_lipschitz,
)
from iresnet_core.branches.local_traces import has_large_images
from iresnet_core.branches.operator_branch import OperatorBranch
from iresnet_core.branches.own_layer import OwnLayer, StatedLayer

__all__ = [
    "ACTIVATIONS",
    "SWISH_SLOPE",
    "Activation",
    "Branch",
    "BranchLayer",
    "Chain",
    "ChainStructure",
    "Control",
    "DenseConcatenation",
    "Fixed",
    "FourierFeatures",
    "JointPass",
    "Linearization",
    "OperatorBranch",
    "OwnLayer",
    "PReLU",
    "Reshape",
    "ScaledActivation",
    "SlopeTrace",
    "StatedLayer",
    "average_pooling",
    "conditioned",
    "entries",
    "evaluate",
    "has_large_images",
    "layer_growth",
    "layer_product",
    "linearize",
    "linearize_jointly",
    "of_samples",
    "stated_lipschitz",
    "without_condition",
]
