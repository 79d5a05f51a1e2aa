"""Measurements that back a figure in the documents: `./dev bench NAME`."""
