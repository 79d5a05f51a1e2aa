"""Tests that hold the documents to the code, and the generator of docs/reference."""
