"""The daemon of the GPU machine: it takes in experience, learns from it, and publishes policies."""
