"""What both machines agree on: specs, steps, framing, codecs, messages and policy bundles."""

PROTOCOL_VERSION = 1
"""Newest link protocol this side speaks."""

OLDEST_PROTOCOL_VERSION = 1
"""Oldest link protocol this side still speaks."""
