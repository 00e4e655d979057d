"""What a checkpoint holds of a training, and the way back into it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricid.errors import InputError
from metricid.models.embedder import embedder_to_dict
from metricid.training.checkpoint import load_weights, set_random_state
from metricid.training.run_folder import changed_options
from metricid.training.state import Position

if TYPE_CHECKING:
    from metricid.training.trainer import Trainer


def model_state(trainer: "Trainer") -> dict[str, Any]:
    """The model, and what is needed to use it: what the file of the best one holds."""
    run = trainer.run
    return {
        "embedder": embedder_to_dict(run.embedder.config),
        "model": run.embedder.state_dict(),
        "ema": trainer.average.model.state_dict() if trainer.average is not None else None,
        "objective": run.objective.state_dict(),
        "label_map": run.label_map,
        "columns": run.side.columns.plain(),
        "fingerprint": trainer.fingerprint,
        "config": trainer.config.plain(),
        "position": asdict(trainer.position),
    }


def whole_state(trainer: "Trainer", generators: list[Any]) -> dict[str, Any]:
    """All that the rest of a training depends on.

    Args:
        trainer: the training.
        generators: the random state of each rank.
    """
    run = trainer.run
    return {
        **model_state(trainer),
        "optimizer": run.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ema_updates": trainer.average.updates if trainer.average is not None else 0,
        "random": generators,
        "world_size": trainer.world.size,
        "skipped_images": trainer.skipped_images(),
        "slow": trainer.slow.state_dict() if trainer.slow is not None else None,
        "mined": run.mined.state_dict() if run.mined is not None else None,
        "log_position": trainer.log.position() if trainer.log is not None else 0,
    }


def check_state(trainer: "Trainer", path: Path, state: dict[str, Any]) -> None:
    """Refuses a state that is not of this training.

    Raises:
        InputError: it belongs to another recipe, other data, or another number of processes.
    """
    changed = changed_options(state["config"], trainer.config)
    if changed:
        raise InputError(
            f"{path}: written under another recipe ({'; '.join(changed[:4])}); "
            "give this run another name: name=..."
        )
    size = trainer.world.size
    if state["world_size"] != size:
        raise InputError(
            f"{path}: written by {state['world_size']} processes, this run has {size}; "
            f"start it with --nproc-per-node {state['world_size']}, or give it another name: name=..."
        )
    if state["fingerprint"] != trainer.fingerprint:
        raise InputError(
            f"{path}: written for other training data ({len(state['label_map'])} identities then, "
            f"{len(trainer.run.label_map)} now); restore the data, or give this run another name: name=..."
        )


def load_state(trainer: "Trainer", path: Path, state: dict[str, Any]) -> None:
    """Puts a training where `whole_state` was taken.

    Args:
        trainer: the training.
        path: of the checkpoint, for messages.
        state: of the checkpoint.

    Raises:
        InputError: weights that do not fit.
    """
    run = trainer.run
    if run.objective.balance is not None and "balance.form" not in state["objective"]:
        raise InputError(
            f"{path}: written by a version of metricid whose balance saw the losses with their weights; "
            "end the run with that version, or give it another name: name=..."
        )
    load_weights(run.embedder, state["model"], path, run.embedder.config)
    load_weights(run.objective, state["objective"], path, run.embedder.config)
    if trainer.average is not None:
        load_weights(trainer.average.model, state["ema"], path, run.embedder.config)
        trainer.average.updates = state["ema_updates"]
    run.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.position = Position(**state["position"])
    if trainer.slow is not None:
        trainer.slow.load_state_dict(state["slow"])
    if run.mined is not None:
        run.mined.load_state_dict(state["mined"])
    set_random_state(state["random"][trainer.world.rank])
