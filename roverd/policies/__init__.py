"""Policies on the robot: from the trainer's offer or a person's file to the wheels, and back where they are bad."""

from roverd.policies.service import Policies
from roverd.policies.store import PolicyStore, PolicyStoreError
from roverd.policies.transaction import Target

__all__ = ["Policies", "PolicyStore", "PolicyStoreError", "Target"]
