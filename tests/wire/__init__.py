"""Golden bytes of every released protocol version: what an older or newer robot really sends."""
