"""Faults made on purpose: links that fail, disks that lose power or fill up, clocks that step, and who audits them."""
