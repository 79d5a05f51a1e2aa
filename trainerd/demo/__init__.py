"""The demo: a simulated rover learns through a real trainerd and a real roverd while one watches."""
