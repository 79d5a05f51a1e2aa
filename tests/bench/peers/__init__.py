"""The learners that ``./dev bench learner`` compares: ours, and four peers in an environment of their own."""
