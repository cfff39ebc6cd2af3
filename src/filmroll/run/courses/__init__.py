"""What is done with a crew: reinforcement learning, supervised learning, evaluation."""
