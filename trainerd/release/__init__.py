"""From a snapshot of the learner to a policy that drives: export, keep, offer."""
