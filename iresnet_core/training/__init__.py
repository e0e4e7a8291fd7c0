"""What the trainers of both frameworks share: plans of models, data, settings, the loop, the run folder, scores."""
