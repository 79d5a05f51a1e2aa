"""The page on which a person drives the robot."""
