"""What doctor looks at on both machines: each check says what was measured, what was expected, and what to do."""
