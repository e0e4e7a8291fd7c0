"""What the replicas of a distributed training agree on, and what must differ between them."""

import sys
from typing import Any

import keras

__all__ = ["is_replicated", "own_seed"]


def own_seed(seed: Any) -> Any:
    """Return a seed (2,) that differs between the replicas of a tf.distribute strategy, and else the seed itself."""
    if keras.backend.backend() != "tensorflow":
        return seed
    tensorflow = sys.modules["tensorflow"]
    replica = tensorflow.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return seed
    identity = tensorflow.cast(replica.replica_id_in_sync_group, seed.dtype)
    return tensorflow.random.fold_in(seed, identity)


def is_replicated() -> bool:
    """Say whether the program being made is that of one of several replicas of a tf.distribute strategy."""
    if keras.backend.backend() != "tensorflow":
        return False
    replica = sys.modules["tensorflow"].distribute.get_replica_context()
    return replica is None or replica.num_replicas_in_sync > 1
