"""Networks: Flax Linen modules whose fields are their hyperparameters."""
