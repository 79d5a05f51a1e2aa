"""Encoders: how camera planes become the features that a policy decides on."""
